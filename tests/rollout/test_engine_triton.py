"""The whole engine on a GPU's kernels, in Triton's interpreter: what it draws is what the CPU's own kernels draw."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FixedPrompts, build, prompt

from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.forms import FORMS as STEP_FORMS
from mstar_engine.reward.head import RewardHead
from mstar_engine.reward.prm import REDUCTIONS, ProcessRewardModel
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout.forks import Fork, complete
from mstar_engine.types import Group, Problem, Response, SamplingParams

torch.set_num_threads(1)
pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="in a process of its own, below")
FORMS = (("auto", "eager"), ("triton", "fixed"))
"""Backend and decode: C++ with steps as they come, against Triton with steps of fixed shape, started ahead."""
STOPS = tuple(range(10, 22))


def engine_for(family: str, backend: str, decode: str, **options) -> RolloutEngine:
    """Prompts of 5, 14 and 23 tokens of text, the first and the last with an image, in blocks of 4."""
    prompts = {f"p{i}": prompt(family, 5 + 9 * i, seed=i, image=i != 1) for i in range(3)}
    encoder = FixedPrompts(prompts, build_tiny(0)[1])
    return RolloutEngine(build(family), encoder, backend=backend, decode=decode, block_size=4, **options)


def assert_same(found: Sequence[Response], expected: Sequence[Response]) -> None:
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.token_ids.tolist() == wanted.token_ids.tolist()
        assert (ours.sample, ours.finish_reason) == (wanted.sample, wanted.finish_reason)
        for name in ("logprobs", "scaled_logprobs", "filtered_logprobs", "entropy"):
            np.testing.assert_allclose(getattr(ours, name), getattr(wanted, name), rtol=1e-3, atol=1e-3)


def assert_same_groups(found: Iterable[Group], expected: Iterable[Group]) -> list[str]:
    """Both complete and alike; how the responses ended."""
    ours, wanted = ({group.problem.id: group.responses for group in groups} for groups in (found, expected))
    assert ours.keys() == wanted.keys()
    for name, responses in wanted.items():
        assert_same(ours[name], responses)
    return [one.finish_reason for responses in wanted.values() for one in responses]


def problems(count: int) -> list[Problem]:
    return [Problem(id=f"p{i}", question="") for i in range(count)]


@interpreted
def test_interpreted_rollout() -> None:
    """Groups of rows below shared prompts, more than run at once, that stop at all times; rotary offsets, top-p."""
    params = SamplingParams(n=3, temperature=0.9, top_p=0.9, max_tokens=4, stop_token_ids=STOPS, seed=5)
    engines = [engine_for("qwen3_vl", *form, max_rows=6) for form in FORMS]
    expected, found = (list(engine.generate(problems(3), params)) for engine in engines)
    reasons = assert_same_groups(found, expected)
    assert reasons.count("stop") >= 2 and reasons.count("length") >= 2
    assert [engine.stats.prefill_tokens for engine in engines] == [engines[0].stats.prompt_tokens] * 2


@interpreted
def test_interpreted_sweep_with_a_sliding_window() -> None:
    """Every temperature a branch of one prompt with common random numbers; keys leave the window of 8."""
    params = SamplingParams(n=4, max_tokens=6, stop_token_ids=STOPS[:4], seed=5)
    arms = np.repeat(np.float32([0.0, 1.2]), 2)
    branches = {"temperatures": lambda _: arms, "samples": lambda _: np.arange(4) % 2}
    expected, found = (
        list(engine_for("gemma3", *form, max_rows=8).generate(problems(2), params, **branches)) for form in FORMS
    )
    assert "length" in assert_same_groups(found, expected)


@interpreted
def test_interpreted_preemption() -> None:
    """Too few blocks: rows lose their keys and have them computed again."""
    params = SamplingParams(n=3, temperature=1.0, max_tokens=6, seed=2)
    found = []
    for form in FORMS:
        engine = engine_for("llava", *form, max_rows=6, policy="watermark")
        engine.kv_cache_memory = 12 * 4 * engine.shape.bytes_per_token
        found.append(list(engine.generate(problems(2), params)))
        assert engine.stats.preemptions > 0
    assert_same_groups(*found)


@dataclass
class Completions:
    """Two completions from each of three places in two stems, then one more from where they have ended."""

    problem: Problem
    stems: Sequence[np.ndarray] = (np.arange(30, 37, dtype=np.int32), np.arange(50, 53, dtype=np.int32))
    offsets: Sequence[tuple[int, ...]] = ((2, 6), (3,))
    fork_rows: int = 6
    found: dict[tuple[int, int, int], Response] = field(default_factory=dict)

    def begin(self) -> list[Fork]:
        places = [(stem, offset) for stem, offsets in enumerate(self.offsets) for offset in offsets]
        return [Fork(stem, offset, tuple(range(10 * i, 10 * i + 2))) for i, (stem, offset) in enumerate(places)]

    def ended(self, fork: Fork, completions: Sequence[Response]) -> list[Fork]:
        self.found |= {(fork.stem, fork.offset, one.sample): one for one in completions}
        return [Fork(fork.stem, fork.offset, (fork.samples[0] + 5,))] if len(fork.samples) == 2 else []


@interpreted
def test_interpreted_forks() -> None:
    """Held stems, and forks that start while a step is under way."""
    params = SamplingParams(temperature=1.0, max_tokens=8, stop_token_ids=STOPS[:6], seed=1)
    found = []
    for form in FORMS:
        plans = [Completions(problem) for problem in problems(1)]
        list(complete(engine_for("llava", *form, max_rows=6), plans, params))
        found.append({(plan.problem.id, *key): one for plan in plans for key, one in plan.found.items()})
    expected, ours = found
    assert ours.keys() == expected.keys() and len(ours) == 3 * 3
    assert_same([ours[key] for key in expected], list(expected.values()))


@interpreted
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_interpreted_step_scores(reduction: str) -> None:
    """A process reward model on the same kernels."""
    model, (_, processor) = build("llava"), build_tiny(0)
    head = RewardHead("label_tokens", output=model.get_output_embeddings(), label_ids=(20, 21), layers=[])
    params = SamplingParams(n=4, temperature=1.0, max_tokens=8, seed=1)
    engine = engine_for("llava", *FORMS[0], max_rows=12)
    engine.stop_ids = lambda: []
    groups = list(engine.generate(problems(3), params))
    ends = [[(2, 5, 8)] * 4, [(8,)] * 4, [(1, 2, 3, 8), (), (4, 8), (3, 8)]]
    scores = []
    for backend in ("auto", "triton"):
        prm = ProcessRewardModel(model, processor, head, STEP_FORMS["mstar"], reduction=reduction, backend=backend)
        prm.encoder = engine.encoder
        scores.append(list(prm.score_groups(groups, ends)))
    for wanted, ours in zip(*scores, strict=True):
        assert ours.weakest == wanted.weakest
        assert ours.scores == pytest.approx(wanted.scores, abs=1e-6)
        for one, other in zip(ours.step_scores, wanted.step_scores, strict=True):
            assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
