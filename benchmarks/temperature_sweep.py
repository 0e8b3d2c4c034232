"""A temperature sweep as branches of one prompt: 14 temperatures x 16 samples in one engine call, against 14 calls.

The model and stop tokens are those of rollout_throughput; a prompt is 32 tokens of text and 1 or 3 images of 256 tokens
(288 tokens are little for a vision-language model, 800 are usual). Both sides draw the same responses from the same
engine, token for token (the subject counts the arms that are alike); a call of the peer has one temperature and all
problems.

Prediction. Ours prefills each prompt once, the peer 14 times. Both feed the same tokens in decoding, but a step costs
the same Python and weight reads however few rows it has: the peer decodes 14 runs of 16 rows a problem, each with its
tail of stragglers, ours 224 rows a problem, up to 256 at once, with one tail. So with few problems ours wins by fuller
steps, and with 16 or more, when 16 rows a problem fill a step as well, by the prefills alone: 13/14 of the peer's.
That is much with long prompts and short responses, and little the other way round. Goal: at most 60% of the peer's
time (a ratio of 1.67) with 800 tokens. No floor is stated for seconds; that of prompt tokens is their number.

    python -m benchmarks.temperature_sweep [--json FILE] [--quick]
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from benchmarks.harness import Row, Side, main, make_row, median_seconds
from benchmarks.rollout_throughput import (
    IMAGE_TOKEN,
    IMAGE_TOKENS,
    MAX_TOKENS,
    SAMPLES,
    STOP_IDS,
    TEXT_TOKENS,
    VOCABULARY,
    build_model,
)
from mstar_engine.config import TemperatureConfig
from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Problem, SamplingParams

GRID = TemperatureConfig().grid


class ManyImages(PromptEncoder):
    """Prompts of random text around `images` random images."""

    images = 1

    def encode(self, problem: Problem) -> EncodedPrompt:
        """The prompt that the problem's number seeds."""
        generator = torch.Generator().manual_seed(int(problem.id))
        text = torch.randint(2, VOCABULARY, (TEXT_TOKENS,), generator=generator)
        ids = torch.cat([text[:4], torch.full((self.images * IMAGE_TOKENS,), IMAGE_TOKEN), text[4:]])
        return EncodedPrompt(ids, {"pixel_values": torch.randn(self.images, 3, 128, 128, generator=generator)})


class Workload:
    """The same arms both ways; `prefilled` counts the prompt tokens of the last call of each, `drawn` its tokens."""

    def __init__(self, engine: RolloutEngine, problems: int) -> None:
        self.engine = engine
        self.problems = [Problem(id=str(i), question="") for i in range(problems)]
        self.prefilled: dict[str, int] = {}
        self.drawn: dict[str, dict[tuple[str, int], list[list[int]]]] = {}

    def _count(self) -> int:
        return self.engine.stats.prefill_tokens + self.engine.stats.extend_tokens

    def ours(self) -> None:
        """One call."""
        params = SamplingParams(n=len(GRID) * SAMPLES, max_tokens=MAX_TOKENS, seed=1, stop_token_ids=STOP_IDS)
        degrees, numbers = np.repeat(GRID, SAMPLES), np.tile(np.arange(SAMPLES, dtype=np.int32), len(GRID))
        groups = self.engine.generate(self.problems, params, temperatures=lambda _: degrees, samples=lambda _: numbers)
        self.drawn["ours"] = {
            (group.problem.id, arm): [r.token_ids.tolist() for r in group.responses[arm * SAMPLES :][:SAMPLES]]
            for group in groups
            for arm in range(len(GRID))
        }
        self.prefilled["ours"] = self._count()

    def peer(self) -> None:
        """One call a temperature."""
        self.prefilled["peer"], self.drawn["peer"] = 0, {}
        for arm, temperature in enumerate(GRID):
            params = SamplingParams(
                n=SAMPLES, temperature=temperature, max_tokens=MAX_TOKENS, seed=1, stop_token_ids=STOP_IDS
            )
            for group in self.engine.generate(self.problems, params):
                self.drawn["peer"][group.problem.id, arm] = [r.token_ids.tolist() for r in group.responses]
            self.prefilled["peer"] += self._count()


def rows(quick: bool) -> Iterable[Row]:
    """Two rows a number of problems and images: seconds, and prompt tokens prefilled."""
    encoder = ManyImages(build_tiny(0)[1])
    engine = RolloutEngine(build_model(), encoder, max_rows=256)
    for count, encoder.images in ((1, 1),) if quick else ((1, 1), (4, 1), (16, 1), (16, 3)):
        work = Workload(engine, count)
        sides = [Side("one call", work.ours), Side("14 calls", work.peer)]
        ours, peer = median_seconds(sides, repeats=1 if quick or count > 4 else 3)
        same = sum(work.drawn["ours"][key] == work.drawn["peer"][key] for key in work.drawn["peer"])
        prompt = encoder.images * IMAGE_TOKENS + TEXT_TOKENS
        subject = f"{count} x {len(GRID)} x {SAMPLES}, prompt {prompt}, to {MAX_TOKENS}, {same} arms alike"
        names = ("one call, 224 rows a prompt", "14 calls")
        yield make_row(subject, *names, ours, peer, "seconds", peer / ours)
        once, often = work.prefilled["ours"], work.prefilled["peer"]
        subject = f"{count} problems, prompt {prompt}: prompt tokens"
        yield make_row(subject, *names, once, often, "tokens", often / once, floor_value=float(count * prompt))


if __name__ == "__main__":
    main("temperature_sweep", rows)
