"""Completions from inside given responses: what `generate` draws behind the same tokens, each prefix computed once."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout import engine as engine_module
from mstar_engine.rollout.decode_buffers import DecodeBuffers
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout.forks import Fork, complete
from mstar_engine.types import Problem, Response, SamplingParams
from mstar_kernels import _C
from mstar_kernels.attention_work import Tiling
from tests.rollout.families import CONFIGS, VOCABULARY, FixedPrompts, build, prompt

MAX_TOKENS = 40


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Rounds:
    """Asks in rounds: `counts[r]` completions of an offset in round r, the next when the one before has ended."""

    problem: Problem
    stems: list[np.ndarray]
    offsets: list[tuple[int, ...]]
    counts: tuple[int, ...]
    found: dict[tuple[int, int, int], Response] = field(default_factory=dict)
    rounds: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def fork_rows(self) -> int:
        return max(self.counts) * sum(len(offsets) for offsets in self.offsets)

    def ask(self, stem: int, offset: int) -> list[Fork]:
        number = self.rounds.get((stem, offset), 0)
        self.rounds[stem, offset] = number + 1
        if number == len(self.counts):
            return []
        first = 1000 * stem + 20 * offset + sum(self.counts[:number])
        return [Fork(stem, offset, tuple(range(first, first + self.counts[number])))]

    def begin(self) -> list[Fork]:
        return [fork for s, offsets in enumerate(self.offsets) for offset in offsets for fork in self.ask(s, offset)]

    def ended(self, fork: Fork, completions) -> list[Fork]:
        assert [one.sample for one in completions] == list(fork.samples)
        for one in completions:
            self.found[fork.stem, fork.offset, one.sample] = one
        return self.ask(fork.stem, fork.offset)


def plans(count: int, counts: tuple[int, ...]) -> list[Rounds]:
    """Plans with stems of several lengths, forked at places inside blocks and at their edges."""
    rng = np.random.default_rng(7)
    shapes = [[(1, 5, 9)], [(3,), (16, 17, 32)], [(2, 4, 6, 8), (1,), (7, 30)]]
    return [
        Rounds(
            Problem(id=f"p{i}", question=""),
            [rng.integers(10, VOCABULARY, offsets[-1] + i % 2).astype(np.int32) for offsets in shapes[i % 3]],
            shapes[i % 3],
            counts,
        )
        for i in range(count)
    ]


def engine_for(family: str, device: str = "cpu", **options) -> RolloutEngine:
    """An engine on a tiny model of the family, whose stop tokens never come."""
    prompts = {f"p{i}": prompt(family, (5, 16, 19)[i % 3], seed=i, image=i % 4 != 3) for i in range(6)}
    engine = RolloutEngine(build(family).to(device), FixedPrompts(prompts, build_tiny(0)[1]), **options)
    engine.stop_ids = lambda: []
    return engine


def run(engine: RolloutEngine, asked: list[Rounds], params: SamplingParams, **options) -> list[Rounds]:
    return [plan for batch in complete(engine, asked, params, **options) for plan in batch]


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_completions_are_those_of_generate(family: str) -> None:
    """Token for token in fp32 what the engine draws when the stem's beginning is part of the prompt."""
    engine = engine_for(family, max_rows=32, block_size=16)
    asked = plans(6, (1, 2))
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    assert {plan.problem.id for plan in run(engine, asked, params)} == {plan.problem.id for plan in asked}

    prompts, problems = {}, {}
    for plan in asked:
        given = engine.encoder.prompts[plan.problem.id]
        for stem, offset, _ in plan.found:
            name = f"{plan.problem.id}/{stem}/{offset}"
            head = torch.from_numpy(plan.stems[stem][:offset]).long()
            tokens = {n: torch.cat([v, torch.zeros(offset, dtype=v.dtype)]) for n, v in given.token_inputs.items()}
            prompts[name] = EncodedPrompt(torch.cat([given.input_ids, head]), given.inputs, tokens)
            problems[name] = (Problem(id=name, question=""), MAX_TOKENS - offset)
    engine.encoder = FixedPrompts(prompts, engine.processor)
    lengths = {name: length for name, (_, length) in problems.items()}
    wanted = {
        group.problem.id: group.responses[0]
        for group in engine.generate(
            [problem for problem, _ in problems.values()],
            lambda problem: SamplingParams(temperature=0.0, max_tokens=lengths[problem.id]),
        )
    }
    for plan in asked:
        for (stem, offset, _), found in plan.found.items():
            peer = wanted[f"{plan.problem.id}/{stem}/{offset}"]
            assert found.token_ids.tolist() == peer.token_ids.tolist(), (plan.problem.id, stem, offset)
            np.testing.assert_allclose(found.logprobs, peer.logprobs, atol=2e-4)


def test_each_prefix_is_computed_once() -> None:
    """Counted by the scheduler: a prompt once, a stem once below it, whatever is forked from where and how often."""
    engine = engine_for("llava", max_rows=64)
    asked = plans(6, (3, 1))
    run(engine, asked, SamplingParams(max_tokens=MAX_TOKENS, seed=1))
    stats = engine.stats
    assert stats.prefill_tokens == sum(len(engine.encoder.prompts[plan.problem.id].input_ids) for plan in asked)
    # The token before a fork is fed by the forked rows themselves.
    assert stats.extend_tokens == sum(offsets[-1] - 1 for plan in asked for offsets in plan.offsets)
    assert stats.sampled_tokens == sum(len(one.token_ids) for plan in asked for one in plan.found.values())


@pytest.mark.parametrize("options", [dict(max_rows=20), dict(max_rows=200, block_size=4), dict(together=1), {}])
def test_draws_do_not_depend_on_scheduling(options: dict[str, int]) -> None:
    """Rows at once, block size and how many problems share a wave: the same tokens."""

    def tokens(**options) -> dict:
        together = {"together": options.pop("together")} if "together" in options else {}
        asked = plans(4, (1, 2))
        run(engine_for("llava", **options), asked, SamplingParams(max_tokens=MAX_TOKENS, seed=3), **together)
        return {(plan.problem.id, *key): one.token_ids.tolist() for plan in asked for key, one in plan.found.items()}

    assert tokens(**options) == tokens(max_rows=64)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
        ),
    ],
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_steps_of_fixed_shape_draw_the_same(family: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run ahead between forks; one that is under way when rows end delays the next forks and nothing else."""
    ahead: list[bool] = []
    plan_ahead = _C.Scheduler.plan_ahead
    monkeypatch.setattr(_C.Scheduler, "plan_ahead", lambda self: (ahead.append(plan_ahead(self)), ahead[-1])[1])

    def drawn(decode: str) -> dict:
        asked = plans(6, (3, 1, 2))
        engine = engine_for(family, device, max_rows=24, block_size=4, decode=decode)
        params = SamplingParams(max_tokens=MAX_TOKENS, seed=3, top_p=0.9, stop_token_ids=tuple(range(10, 16)))
        assert {plan.problem.id for plan in run(engine, asked, params, together=4)} == {p.problem.id for p in asked}
        return {(plan.problem.id, *key): one for plan in asked for key, one in plan.found.items()}

    expected = drawn("eager")
    assert len({len(one.token_ids) for one in expected.values()}) > 10 and not ahead
    found = drawn("fixed")
    assert found.keys() == expected.keys() and sum(ahead) > 40
    for key, one in found.items():
        assert one.token_ids.tolist() == expected[key].token_ids.tolist()
        assert one.finish_reason == expected[key].finish_reason
        np.testing.assert_allclose(one.logprobs, expected[key].logprobs, atol=2e-4)


def test_completions_differ_between_samples_and_end_with_the_response() -> None:
    """`max_tokens` is the whole response's, and every sample has draws of its own."""
    engine = engine_for("llava", max_rows=64)
    (plan,) = run(engine, plans(1, (4,)), SamplingParams(max_tokens=MAX_TOKENS, seed=3))
    for offset in (1, 5, 9):
        texts = [tuple(one.token_ids) for (_, at, _), one in plan.found.items() if at == offset]
        assert len(set(texts)) == 4
        assert {len(text) for text in texts} == {MAX_TOKENS - offset}


def test_a_tree_that_cannot_fit_names_its_problem() -> None:
    """Before anything is computed."""
    engine = engine_for("llava", max_rows=64, kv_cache_memory=2048)
    with pytest.raises(ValueError, match=r"rollout: problem p0: .*max_sequence_length=16"):
        run(engine, plans(1, (4,)), SamplingParams(max_tokens=MAX_TOKENS))


def test_where_rows_or_memory_are_few_forks_wait_their_turn() -> None:
    """A fork of more samples than there are rows comes back in parts; what is drawn does not change."""

    def tokens(**options) -> dict:
        asked = plans(3, (5,))
        for plan in asked:  # parts of a fork end one by one: nothing more is asked for then
            plan.ended = lambda fork, found, plan=plan: [
                plan.found.__setitem__((fork.stem, fork.offset, one.sample), one) for one in found
            ][:0]
        run(engine_for("llava", **options), asked, SamplingParams(max_tokens=MAX_TOKENS, seed=3))
        return {(plan.problem.id, *key): one.token_ids.tolist() for plan in asked for key, one in plan.found.items()}

    whole = tokens(max_rows=64)
    assert len(whole) == 5 * sum(len(offsets) for plan in plans(3, (5,)) for offsets in plan.offsets)
    assert tokens(max_rows=3) == whole
    assert tokens(max_rows=64, kv_cache_memory=100 << 10) == whole


def test_the_cache_that_was_taken_does_not_count_against_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory is measured once, before: a cache that takes what there is leaves little."""
    room, held, caches = 1 << 20, [], []
    make = engine_module.KVCache.__init__
    monkeypatch.setattr(engine_module.KVCache, "__init__", lambda *a: (caches.append(a), make(*a))[1])
    monkeypatch.setattr(engine_module, "memory_limit", lambda *_: room // 50 if caches else room)
    hold = _C.Scheduler.hold
    monkeypatch.setattr(_C.Scheduler, "hold", lambda *a, **k: (held.append(k["fork_rows"]), hold(*a, **k))[1])
    for options in ({}, {"kv_cache_memory": room}):
        run(engine_for("llava", max_rows=64, **options), plans(2, (5,)), SamplingParams(max_tokens=MAX_TOKENS, seed=3))
    assert held[:2] == held[2:] and held[0] > 1


def test_stems_with_many_forks_get_buffers_of_their_depth() -> None:
    """Every fork in a block of its own: the last rows lie below more nodes than buffers usually provide for."""
    offsets = tuple(range(2, 151, 2))
    stem = np.random.default_rng(1).integers(10, VOCABULARY, 151).astype(np.int32)
    found = []
    for decode in ("eager", "fixed"):
        engine = engine_for("llava", max_rows=16, block_size=2, decode=decode)
        plan = Rounds(Problem(id="p0", question=""), [stem], [offsets], (1,))
        run(engine, [plan], SamplingParams(max_tokens=153, seed=3))
        found.append({key: one.token_ids.tolist() for key, one in plan.found.items()})
    buffers = engine._decoder.buffers
    assert found[0] == found[1] and len(found[0]) == len(offsets) == 75
    assert buffers.depth == 77
    tiling = Tiling(kv_heads=2, narrow_rows=4, wide_rows=16, narrow_programs=4, wide_programs=4)
    sizes = (buffers.max_rows, buffers.max_nodes, buffers.table_width, 2, torch.device("cpu"), tiling)
    assert DecodeBuffers(*sizes, depth=77)._capacity["slots"] >= 77 * 16
