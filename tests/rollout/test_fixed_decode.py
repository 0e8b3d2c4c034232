"""Decode steps of fixed shape, each started before the one in front of it has ended: nothing that is drawn changes.

On CUDA the same steps are captured in graphs; here they run as they are.
"""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from families import CONFIGS, FixedPrompts, build, prompt

from mstar_engine.models import fused
from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout import decoder, kv_cache
from mstar_engine.rollout.decode_buffers import DecodeBuffers, power_of_2, row_bucket
from mstar_engine.rollout.decoder import Decoder
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.types import Problem, SamplingParams
from mstar_kernels import _C

STOPS = tuple(range(10, 18))
"""One in fourteen of the vocabulary: responses end all the time."""
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def processor():
    return build_tiny(0)[1]


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """The order in which steps are launched and committed."""
    seen: list[str] = []
    launch, commit = Decoder.launch, _C.Scheduler.commit
    monkeypatch.setattr(Decoder, "launch", lambda *a: (seen.append("launch"), launch(*a))[1])
    monkeypatch.setattr(_C.Scheduler, "commit", lambda *a: (seen.append("commit"), commit(*a))[1])
    return seen


def drawn(family: str, processor, decode: str, device: str = "cpu", stops=STOPS, **options) -> dict:
    """What 7 problems of 5 responses draw, with records, by problem."""
    torch.manual_seed(0)
    model = build(family).to(device)
    prompts = {f"p{i}": prompt(family, 5 + 3 * i, seed=i, image=i % 3 != 2) for i in range(7)}
    engine = RolloutEngine(model, FixedPrompts(prompts, processor), block_size=4, decode=decode, **options)
    params = SamplingParams(n=5, temperature=1.0, max_tokens=24, top_p=0.95, stop_token_ids=stops, seed=3)
    asked = [Problem(id=name, question="") for name in prompts]
    found = {}
    for group in engine.generate(asked, params):
        found[group.problem.id] = [(r.token_ids.tolist(), r.logprobs, r.finish_reason) for r in group.responses]
    found["stats"] = (engine.stats.sampled_tokens, engine.stats.prefill_tokens)
    return found


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and found["stats"] == expected["stats"]
    for name in found.keys() - {"stats"}:
        for (ids, logprobs, reason), (wanted_ids, wanted_logprobs, wanted_reason) in zip(found[name], expected[name]):
            assert ids == wanted_ids and reason == wanted_reason
            np.testing.assert_allclose(logprobs, wanted_logprobs, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", CONFIGS)
def test_draws_are_those_of_eager_steps(family: str, device: str, processor) -> None:
    found = drawn(family, processor, "fixed", device, max_rows=16)
    assert_same(found, drawn(family, processor, "eager", device, max_rows=16))
    lengths = {len(ids) for name in found.keys() - {"stats"} for ids, _, _ in found[name]}
    assert len(lengths) > 5 and max(lengths) == 24  # rows stop in many steps, and some run to their length


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", CONFIGS)
def test_fused_layers_draw_the_same(family: str, device: str, processor, monkeypatch) -> None:
    called = {"rms_norm", "rotary"} if family == "gemma3" else {"rms_norm", "rotary", "silu_mul"}
    seen = set()
    for name in called:
        op = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *a, name=name, op=op, **k: (seen.add(name), op(*a, **k))[1])
    found = drawn(family, processor, "fixed", device, max_rows=16, fused_decode=True)
    assert seen == called  # in the shapes in which a step has them
    assert_same(found, drawn(family, processor, "fixed", device, max_rows=16, fused_decode=False))


def test_what_is_fused_is_told(processor) -> None:
    prompts = FixedPrompts({"p": prompt("llava", 5, 0)}, processor)
    engine = RolloutEngine(build("llava"), prompts, decode="fixed", fused_decode=True)
    assert engine.fused is None
    list(engine.generate([Problem(id="p", question="")], SamplingParams(n=2, max_tokens=4)))
    assert len(engine.fused.fused) == 3 and not engine.fused.left and engine._decoder.fused is engine.fused
    assert all("forward" not in vars(part) for part in engine.model.modules())
    for options, reason in (
        ({"decode": "fixed", "torch_compile": True}, "torch_compile"),
        ({"decode": "eager"}, "eager"),
    ):
        with pytest.raises(ValueError, match=f"fused_decode=True while .*{reason}.*allowed"):
            RolloutEngine(engine.model, prompts, fused_decode=True, **options)
    for options in ({}, {"decode": "fixed"}, {"decode": "fixed", "torch_compile": True}):
        assert not RolloutEngine(engine.model, prompts, **options)._fused_decode  # the CPU gains nothing


@pytest.mark.parametrize("policy", ["no_evict", "watermark"])
def test_a_small_cache(policy: str, processor) -> None:
    """Admission between the steps, and preemption under the watermark."""
    options = {"max_rows": 11, "policy": policy}
    bytes_per_block = 4 * RolloutEngine(build("llava"), processor).shape.bytes_per_token
    options["kv_cache_memory"] = (44 if policy == "watermark" else 60) * bytes_per_block
    assert_same(drawn("llava", processor, "fixed", **options), drawn("llava", processor, "eager", **options))


def test_steps_run_ahead_of_the_host(processor, launches: list[str]) -> None:
    """Without stops nearly every step is started before the one in front of it is committed."""
    drawn("llava", processor, "fixed", stops=(), max_rows=35)
    ahead = sum(launches[i : i + 2] == ["launch", "launch"] for i in range(len(launches)))
    follows = sum(launches[i : i + 3] == ["commit", "launch", "commit"] for i in range(len(launches)))
    assert launches.count("launch") == 23 and ahead == 1 and follows == 21


def test_unfit_logits_name_the_row(processor, monkeypatch) -> None:
    """A kernel marks such a row with a token below 0, which is seen when the step is waited for."""
    launch = Decoder.launch

    def marked(self, plan, rotary):
        step = launch(self, plan, rotary)
        if int(plan.position[1]) == 7:
            step.tokens[1] = -1
        return step

    monkeypatch.setattr(Decoder, "launch", marked)
    with pytest.raises(
        ValueError, match=r"NaN or infinite for problem p\d, sample 1, at step 7 of the response \(1 of"
    ):
        drawn("llava", processor, "fixed", stops=(), max_rows=5)


def test_a_captured_step_is_dropped_when_the_weights_move(processor) -> None:
    engine = RolloutEngine(build("llava"), FixedPrompts({"p": prompt("llava", 5, 0)}, processor), decode="fixed")
    params = SamplingParams(n=2, temperature=0.0, max_tokens=4)
    asked = [Problem(id="p", question="")]
    list(engine.generate(asked, params))
    first = engine._decoder
    with torch.no_grad():
        engine.model.get_output_embeddings().weight.mul_(0.5)
    list(engine.generate(asked, params))
    assert engine._decoder is first  # changed in place: the graph reads the new values
    head = engine.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    list(engine.generate(asked, params))
    assert engine._decoder is not first
    engine.release()
    assert engine._decoder is None


def test_a_larger_cache_takes_the_place_of_the_kept_one(processor, monkeypatch) -> None:
    """The decoder of the smaller one must not keep it in memory meanwhile."""
    engine = RolloutEngine(build("llava"), FixedPrompts({"p": prompt("llava", 5, 0)}, processor), decode="fixed")
    asked = [Problem(id="p", question="")]
    list(engine.generate(asked, SamplingParams(n=2, max_tokens=4)))
    before, kept = weakref.ref(engine._cache.storage), []
    make = KVCache.__init__
    monkeypatch.setattr(KVCache, "__init__", lambda *given: (kept.append(before()), make(*given))[1])
    list(engine.generate(asked, SamplingParams(n=8, max_tokens=100)))
    assert kept == [None]


def test_what_the_kept_cache_takes_is_free_for_its_successor(processor, monkeypatch) -> None:
    engine = RolloutEngine(build("llava"), FixedPrompts({"p": prompt("llava", 5, 0)}, processor))
    free = 4 * 100 * engine.block_size * engine.shape.bytes_per_token
    used = lambda: 0 if engine._cache is None else engine._cache.storage.nbytes  # noqa: E731
    monkeypatch.setattr(kv_cache, "_available", lambda: free - used())
    assert engine.most_blocks() == 100
    list(engine.generate([Problem(id="p", question="")], SamplingParams(n=8, max_tokens=100)))
    assert engine._cache.num_blocks > 20 and engine.most_blocks() == 100


def test_no_memory_for_decode_steps_says_what_to_lower(processor, monkeypatch) -> None:
    """Joined weights and a workspace come behind the cache, which may have taken all there was."""

    def full(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = RolloutEngine(
        build("llava"), FixedPrompts({"p": prompt("llava", 5, 0)}, processor), decode="fixed", fused_decode=True
    )
    asked, params = [Problem(id="p", question="")], SamplingParams(n=2, temperature=0.0, max_tokens=4)
    with monkeypatch.context() as patched:
        patched.setattr(decoder, "JoinedProjections", full)
        with pytest.raises(ValueError, match=r"no memory for decode steps of 256 rows .*lower rollout.kv_cache_memory"):
            list(engine.generate(asked, params))
    (group,) = engine.generate(asked, params)
    assert len(group.responses[0].token_ids) > 0


@pytest.mark.slow
def test_a_compiled_step_draws_the_same(processor) -> None:
    options = {"stops": (), "max_rows": 35}
    compiled = drawn("llava", processor, "fixed", torch_compile=True, **options)
    assert_same(compiled, drawn("llava", processor, "eager", **options))


# ---- buffers


def test_buckets_cover_and_do_not_waste() -> None:
    for rows in range(1, 1025):
        bucket = row_bucket(rows)
        assert rows <= bucket < max(2 * rows, rows + 32) and row_bucket(bucket) == bucket
        assert rows <= power_of_2(rows) < 2 * rows + (rows == 1)
    assert len({row_bucket(rows) for rows in range(1, 257)}) == 16


def test_padding_rows_touch_nothing() -> None:
    scheduler = _C.Scheduler(
        num_blocks=32, block_size=4, max_rows=8, max_prefill_tokens=64, max_sequence_length=32, stop_ids=[]
    )
    ones = np.ones(3, np.float32)
    scheduler.submit(9, 12, 2**64 - 1, 5, np.arange(3, dtype=np.int32), ones, np.zeros(3, np.int32), ones, 0 * ones)
    scheduler.next_plan()
    scheduler.commit(np.array([7, 8, 9], np.int32), np.zeros((3, 4), np.float32))
    scheduler.next_plan()
    plan = scheduler.plan
    buffers = DecodeBuffers(8, *plan.block_table.shape, 4, torch.device("cpu"))
    buffers._device.fill_(99)
    bucket = buffers.send(plan, 0, plan.positions[:3] + 100)
    assert (bucket.rows, bucket.nodes, bucket.columns) == (4, 8, 2)
    rows, tree = buffers.rows(bucket), buffers.tree(bucket)
    assert rows["token_ids"].tolist() == [7, 8, 9, 0] and rows["token_rows"].tolist() == [-1] * 4
    assert rows["rotary"].tolist() == [109, 109, 109, 0] and rows["seed"].tolist() == [-1, -1, -1, 0]
    assert rows["slots"][3] == -1 and rows["temperature"].tolist() == [1, 1, 1, 0]
    assert tree.node_row_end[plan.num_nodes :].tolist() == [0] * 4 and tree.node_length[plan.num_nodes :].sum() == 0
    for m in range(plan.num_nodes):
        used = -(-int(plan.node_length[m]) // 4)
        assert tree.block_table[m, :used].tolist() == plan.block_table[plan.node_table[m], :used].tolist()
