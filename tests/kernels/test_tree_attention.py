"""tree_attention on CPU against the plain reference: shapes, dtypes, options, order of arithmetic, refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import Case, expected, in_plain_pytorch, make_case, one_group

from mstar_kernels import tree_attention as module
from mstar_kernels.tree_attention import check_tree, tree_attention

_C = pytest.importorskip("mstar_kernels._C")
torch.set_num_threads(1)

ISAS = ("portable", "avx2", "avx512")
WIDEST = ISAS.index(_C.active_isa())
RUNNABLE = ISAS[: WIDEST + 1]
HALVES = (torch.bfloat16, torch.float16)


def on_cpu(case: Case, isa: str = "", **options) -> torch.Tensor:
    scale = options.pop("scale", case.q.shape[2] ** -0.5)
    window, softcap = options.pop("sliding_window", None), options.pop("softcap", None)
    check_tree(case.tree, rows=case.q.shape[0], num_blocks=case.k_cache.shape[0], block_size=case.k_cache.shape[2])
    return module._cpu(case.q, case.k_cache, case.v_cache, case.tree, case.positions, scale, window, softcap, isa)


def assert_matches(case: Case, tolerance: float = 3e-6, isa: str = "", **options) -> None:
    torch.testing.assert_close(
        on_cpu(case, isa, **dict(options)).double(), expected(case, **options), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("head_dim", [8, 20, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size, gqa", [(1, 7), (4, 1), (16, 2), (32, 7)])
def test_odd_shapes(isa: str, head_dim: int, block_size: int, gqa: int) -> None:
    seed = head_dim * 100 + block_size
    case = make_case(seed, depth=seed % 4 + 1, gqa=gqa, head_dim=head_dim, block_size=block_size, branching=2)
    assert_matches(case, isa=isa)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("options", [{"sliding_window": 5}, {"softcap": 3.0}, {"sliding_window": 70, "softcap": 30.0}])
def test_window_and_softcap(isa: str, options: dict) -> None:
    for seed in range(4):
        case = make_case(seed, depth=3, shared_blocks=12, block_size=8, leaf_tokens=40, magnitude=3.0)
        assert_matches(case, isa=isa, **options)


def test_a_window_may_hide_a_node_from_some_rows_only() -> None:
    case = one_group(rows=3, shared=32, leaf_tokens=[1, 8, 20], head_dim=16)
    window = 10  # rows 0 and 1 still see the end of the prompt, row 2 no longer
    assert_matches(case, sliding_window=window)
    changed = dataclasses.replace(case, v_cache=case.v_cache.clone())
    changed.v_cache[case.tree.block_table[0, :2].long()] += 1
    moved = (on_cpu(changed, sliding_window=window) != on_cpu(case, sliding_window=window)).flatten(1).any(1)
    assert moved.tolist() == [True, True, False]


def test_a_window_counts_from_the_position() -> None:
    case = one_group(rows=2, shared=32, leaf_tokens=[4, 4], head_dim=8)
    assert_matches(case, sliding_window=1)
    seen_one = on_cpu(case, sliding_window=1)
    last_slot = case.tree.block_table[1:3, 0].long()
    values = case.v_cache[last_slot, :, 3].repeat_interleave(2, dim=1)
    torch.testing.assert_close(seen_one, values)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 4),
    branching=st.integers(1, 6),
    block_size=st.sampled_from([1, 2, 16]),
    gqa=st.sampled_from([1, 2, 3]),
    window=st.none() | st.integers(1, 60),
)
def test_any_tree(seed: int, depth: int, branching: int, block_size: int, gqa: int, window: int | None) -> None:
    branching = min(branching, 3) if depth > 2 else branching
    case = make_case(seed, depth=depth, branching=branching, block_size=block_size, gqa=gqa, head_dim=12)
    assert_matches(case, sliding_window=window)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_error_at_most_twice_that_of_pytorch_in_the_same_precision(isa, dtype, softcap) -> None:
    for head_dim, gqa in [(64, 2), (20, 7)]:
        case = make_case(head_dim, depth=2, gqa=gqa, head_dim=head_dim, block_size=16, leaf_tokens=30).to(dtype)
        truth = expected(case, softcap=softcap)
        ours = (on_cpu(case, isa, softcap=softcap).double() - truth).abs()
        plain = (in_plain_pytorch(case, softcap).double() - truth).abs()
        assert ours.max() <= 2 * plain.max()
        assert ours.mean() <= 2 * plain.mean()


@pytest.fixture
def threads():
    yield _C.set_num_threads
    _C.set_num_threads(1)


@pytest.mark.parametrize("window", [None, 600])
def test_the_same_bits_for_any_number_of_threads(threads, window: int | None) -> None:
    case = one_group(rows=40, shared=1600, leaf_tokens=list(range(40)), head_dim=24)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results += [on_cpu(case, sliding_window=window) for _ in range(2)]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("head_dim", [20, 64])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"sliding_window": 300}])
def test_a_row_has_the_same_bits_in_any_batch(isa: str, head_dim: int, options: dict) -> None:
    rows = 21  # two full tiles of lanes and some left over
    leaf_tokens = [(7 * row) % 50 for row in range(rows)]
    whole = one_group(rows, 624, leaf_tokens, head_dim)
    together = on_cpu(whole, isa, **dict(options))
    for kept in ([0], [20], [3, 4, 5], list(range(1, 12))):
        nodes = torch.tensor([row + 1 for row in kept] + [0])  # leaves first: the order of nodes is free
        begins, ends = [*range(len(kept)), 0], [*range(1, len(kept) + 1), len(kept)]
        tree = module.Tree(
            node_row_begin=torch.tensor(begins, dtype=torch.int32),
            node_row_end=torch.tensor(ends, dtype=torch.int32),
            node_table=whole.tree.node_table[nodes],
            node_length=whole.tree.node_length[nodes],
            node_start=whole.tree.node_start[nodes],
            block_table=whole.tree.block_table,
        )
        some = dataclasses.replace(whole, q=whole.q[kept], tree=tree, positions=whole.positions[kept])
        assert torch.equal(on_cpu(some, isa, **dict(options)), together[kept])


@pytest.mark.parametrize("isa", RUNNABLE)
def test_extreme_values(isa: str) -> None:
    case = one_group(rows=5, shared=48, leaf_tokens=[0, 1, 5, 17, 33], head_dim=16)
    zeros = dataclasses.replace(case, q=torch.zeros_like(case.q))
    assert_matches(zeros, isa=isa)  # the mean of the values
    assert_matches(dataclasses.replace(case, k_cache=torch.zeros_like(case.k_cache)), isa=isa)
    sharp = dataclasses.replace(case, q=case.q * 1e4)  # one key takes all
    assert_matches(sharp, isa=isa)
    for factor in (1e18, -1e18):  # logits near 1e37, all of one sign among them
        huge = dataclasses.replace(case, q=case.q.abs() * factor, k_cache=case.k_cache.abs() * 1e18)
        assert torch.isfinite(on_cpu(huge, isa)).all()
    large = dataclasses.replace(sharp, v_cache=case.v_cache * 1e30)
    torch.testing.assert_close(
        on_cpu(large, isa, softcap=50.0).double() / 1e30, expected(large, softcap=50.0) / 1e30, rtol=1e-5, atol=1e-5
    )


def test_a_row_that_sees_no_key_gets_zeros() -> None:
    case = one_group(rows=2, shared=0, leaf_tokens=[0, 3], head_dim=8)
    out = on_cpu(case)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert torch.isfinite(out[1]).all() and out[1].abs().sum() > 0
    far = dataclasses.replace(case, positions=case.positions + 1000)
    assert torch.equal(on_cpu(far, sliding_window=5), torch.zeros_like(out))


def test_no_rows_and_no_nodes() -> None:
    case = one_group(rows=1, shared=0, leaf_tokens=[1], head_dim=8)
    nothing = torch.zeros(0, dtype=torch.int32)
    tree = module.Tree(nothing, nothing, nothing, nothing, nothing, case.tree.block_table)
    out = tree_attention(case.q[:0], case.k_cache, case.v_cache, tree, nothing, scale=1.0)
    assert out.shape == (0, 4, 8)


def test_backends_agree_and_queries_may_be_a_view() -> None:
    case = make_case(3)
    arguments = (case.k_cache, case.v_cache, case.tree, case.positions)
    strided = torch.stack([case.q, -case.q], dim=1)[:, 0]
    outputs = [
        tree_attention(strided, *arguments, scale=0.2, backend=backend) for backend in ("auto", "cpu", "reference")
    ]
    torch.testing.assert_close(outputs[1], outputs[2])
    assert torch.equal(outputs[0], outputs[1])


def test_queries_and_cache_may_differ_in_dtype() -> None:
    case = make_case(5)
    half = case.to(torch.bfloat16)
    mixed = dataclasses.replace(half, q=case.q)
    assert on_cpu(mixed).dtype == torch.float32
    assert_matches(mixed)


def broken(case: Case, **changes) -> Case:
    return dataclasses.replace(case, tree=dataclasses.replace(case.tree, **changes))


@pytest.mark.parametrize(
    "name, value",
    [
        ("node_row_end", 99), ("node_row_begin", -1), ("node_table", 99), ("node_table", -1),
        ("node_length", -1), ("node_length", 10**6), ("node_start", -1),
    ],
)  # fmt: skip
def test_a_node_out_of_range_is_refused(name: str, value: int) -> None:
    case = make_case(1)
    changed = getattr(case.tree, name).clone()
    changed[0] = value
    case = broken(case, **{name: changed})
    with pytest.raises(ValueError, match=name):
        tree_attention(case.q, case.k_cache, case.v_cache, case.tree, case.positions, scale=1.0)


def test_a_block_out_of_range_is_refused() -> None:
    case = one_group(rows=2, shared=32, leaf_tokens=[4, 4], head_dim=8)
    for value in (-1, len(case.k_cache)):
        table = case.tree.block_table.clone()
        table[0, 1] = value
        with pytest.raises(ValueError, match="block_table of node 0"):
            tree_attention(
                case.q, case.k_cache, case.v_cache, broken(case, block_table=table).tree, case.positions, scale=1.0
            )


def test_wrong_arguments_are_refused() -> None:
    case = make_case(2)
    tensors = dict(q=case.q, k_cache=case.k_cache, v_cache=case.v_cache, positions=case.positions)
    for name, change in [
        ("q has D", {"q": case.q[:, :, :5]}),
        ("multiple of Hkv", {"q": case.q[:, :3]}),
        ("float64", {"q": case.q.double()}),
        ("v_cache", {"v_cache": case.v_cache.bfloat16()}),
        ("contiguous", {"k_cache": case.k_cache.transpose(1, 2).contiguous().transpose(1, 2)}),
        ("positions", {"positions": case.positions.long()}),
        ("positions", {"positions": case.positions[1:]}),
        ("sliding_window", {"sliding_window": 0}),
        ("softcap", {"softcap": 0.0}),
        ("scale", {"scale": float("nan")}),
        ("triton", {"backend": "triton"}),
    ]:
        with pytest.raises((ValueError, RuntimeError), match=name):
            tree_attention(**{**tensors, "tree": case.tree, "scale": 1.0, **change})
