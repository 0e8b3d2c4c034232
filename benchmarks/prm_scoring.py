"""Step scores of a group of 16 responses: prompt shared, against the two usual ways, same model, steps and threads.

A LLaVA-class model with random weights, a prompt of 512 tokens (256 of them an image), 16 responses of 128 tokens, a
step every 16. Peers: "one forward per response", prompt and response through the backbone and the label rows read at
step ends (the best case of what trainers do); and "full logits", the group as one padded batch through the whole model,
[tokens, vocabulary] logits and a softmax of two columns. All three give the same scores to 1e-4, which is checked.

Floor: the tokens that the backbone must compute, prompt once and each response once, are 2,560 of the peers' 10,240;
at the peer's speed per token, a quarter of its time. Memory: the largest tensor that anything behind the backbone
allocates, counted at every operation; the label rows need it to stay as it is when the vocabulary grows.

    python -m benchmarks.prm_scoring [--json FILE] [--quick]
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from benchmarks.harness import Row, Side, compare, main, make_row
from benchmarks.largest_tensor import largest_mib
from benchmarks.rollout_throughput import IMAGE_TOKEN, IMAGE_TOKENS, build_model
from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.forms import FORMS
from mstar_engine.reward.head import RewardHead
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.types import Group, Problem, Response

TEXT_TOKENS = 256
RESPONSES, LENGTH, STEP = 16, 128, 16
LABELS = (20, 21)


class OnePrompt(PromptEncoder):
    """A prompt of random text around one random image."""

    def encode(self, problem: Problem) -> EncodedPrompt:
        """The prompt that the problem's number seeds."""
        generator = torch.Generator().manual_seed(int(problem.id))
        text = torch.randint(30, 2000, (TEXT_TOKENS,), generator=generator)
        ids = torch.cat([text[:4], torch.full((IMAGE_TOKENS,), IMAGE_TOKEN), text[4:]])
        return EncodedPrompt(ids, {"pixel_values": torch.randn(1, 3, 128, 128, generator=generator)})


class Workload:
    """One group and the three ways to score it; `scores` keeps what each found, [responses, steps]."""

    def __init__(self, vocabulary: int) -> None:
        self.model = build_model(vocabulary, tied=True)
        processor = build_tiny(0)[1]
        head = RewardHead("label_tokens", output=self.model.get_output_embeddings(), label_ids=LABELS)
        self.prm = ProcessRewardModel(self.model, processor, head, FORMS["mstar"])
        self.prm.encoder = OnePrompt(processor)
        ids = np.random.default_rng(0).integers(30, 2000, (RESPONSES, LENGTH)).astype(np.int32)
        nothing = np.zeros(0, np.float32)
        responses = tuple(
            Response(
                sample=i, token_ids=one, text="", logprobs=nothing, scaled_logprobs=nothing, filtered_logprobs=nothing,
                entropy=nothing, finish_reason="stop", temperature=1.0,
            )
            for i, one in enumerate(ids)
        )  # fmt: skip
        problem = Problem(id="0", question="")
        self.group = Group(problem=problem, responses=responses, prompt_length=IMAGE_TOKENS + TEXT_TOKENS)
        self.ends = list(range(STEP, LENGTH + 1, STEP))
        self.prompt = self.prm.encoder.encode(problem)
        self.ids = torch.stack([torch.cat([self.prompt.input_ids, torch.from_numpy(one).long()]) for one in ids])
        self.at = torch.tensor([len(self.prompt.input_ids) + end - 1 for end in self.ends])
        self.scores: dict[str, np.ndarray] = {}

    def ours(self) -> None:
        """The prompt once, the responses as branches, label rows at step ends."""
        (found,) = self.prm.score_groups([self.group], [[self.ends] * RESPONSES])
        self.scores["ours"] = np.asarray(found.step_scores)

    @torch.no_grad()
    def forward_each(self) -> None:
        """One forward per response; label rows at step ends."""
        rows = self.model.get_output_embeddings().weight[list(LABELS)]
        found = []
        for one in self.ids:
            hidden = self.model.base_model(input_ids=one[None], use_cache=False, **self.prompt.inputs)
            found.append((hidden.last_hidden_state[0, self.at] @ rows.T).softmax(-1)[:, 0])
        self.scores["forward_each"] = torch.stack(found).numpy()

    @torch.no_grad()
    def full_logits(self) -> None:
        """One batch through the whole model, then two columns of its logits."""
        pixels = self.prompt.inputs["pixel_values"].expand(RESPONSES, -1, -1, -1)
        logits = self.model(input_ids=self.ids, pixel_values=pixels, use_cache=False).logits
        self.scores["full_logits"] = logits[:, self.at][..., list(LABELS)].softmax(-1)[..., 0].numpy()

    def check(self) -> None:
        """All ways agree."""
        for name, scores in self.scores.items():
            np.testing.assert_allclose(scores, self.scores["ours"], atol=1e-4, err_msg=name)


def rows(quick: bool) -> Iterable[Row]:
    """Time against both peers, then memory at two sizes of the vocabulary."""
    vocabularies = (8192,) if quick else (8192, 152_064)
    for vocabulary in vocabularies:
        work = Workload(vocabulary)
        tokens = IMAGE_TOKENS + TEXT_TOKENS + RESPONSES * LENGTH
        whole = RESPONSES * (IMAGE_TOKENS + TEXT_TOKENS + LENGTH)
        shape = f"{RESPONSES} responses of {LENGTH}, prompt {IMAGE_TOKENS + TEXT_TOKENS}, V={vocabulary}"
        for name, peer in (("one forward per response", work.forward_each), ("full logits", work.full_logits)):
            before = (work.prm.stats.prompt_tokens, work.prm.stats.branch_tokens)
            row = compare(
                shape,
                Side("ProcessRewardModel.score", work.ours),
                Side(name, peer),
                unit="ms/group",
                per_second=lambda seconds: seconds * 1e3,
                repeats=1 if quick else 7,
            )
            work.check()
            calls = 2 if quick else 8
            counted = [work.prm.stats.prompt_tokens - before[0], work.prm.stats.branch_tokens - before[1]]
            assert counted == [calls * (tokens - RESPONSES * LENGTH), calls * RESPONSES * LENGTH], counted
            yield make_row(
                row.subject, row.ours, row.peer, row.ours_value, row.peer_value, row.unit, row.ratio,
                row.peer_value * tokens / whole,
            )  # fmt: skip
        ours, peer = largest_mib(work.ours), largest_mib(work.full_logits)
        yield make_row(
            f"largest tensor, V={vocabulary}", "ProcessRewardModel.score", "full logits", ours, peer, "MiB", peer / ours
        )


if __name__ == "__main__":
    main("prm_scoring", rows)
