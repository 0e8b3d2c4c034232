"""store_kv and copy_blocks: the CPU form against the reference, and refusals that leave the cache untouched."""

from __future__ import annotations

import pytest
import torch

from mstar_kernels.paged_kv import copy_blocks, store_kv

pytest.importorskip("mstar_kernels._C")
torch.set_num_threads(1)


def caches(
    dtype: torch.dtype = torch.float32, blocks: int = 9, block_size: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (blocks, 3, block_size, 5)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(2))


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens, block_size", [(0, 4), (1, 1), (7, 4), (200, 32)])
def test_store_matches_the_reference(dtype: torch.dtype, tokens: int, block_size: int) -> None:
    k, v = (torch.randn(tokens, 3, 5).to(dtype) for _ in range(2))
    slots = torch.randperm(9 * block_size)[:tokens].int()
    fast, plain = caches(dtype, block_size=block_size), caches(dtype, block_size=block_size)
    store_kv(k, v, *fast, slots, backend="cpu")
    store_kv(k, v, *plain, slots, backend="reference")
    assert torch.equal(fast[0], plain[0]) and torch.equal(fast[1], plain[1])
    for token, slot in enumerate(slots.tolist()):
        assert torch.equal(fast[0][slot // block_size, :, slot % block_size], k[token])
        assert torch.equal(fast[1][slot // block_size, :, slot % block_size], v[token])


def test_store_takes_views() -> None:
    k, v = torch.randn(3, 6, 5).transpose(0, 1), torch.randn(6, 6, 5)[:, ::2]
    fast, plain = caches(), caches()
    store_kv(k, v, *fast, ids(3, 1, 4, 15, 9, 2))
    store_kv(k, v, *plain, ids(3, 1, 4, 15, 9, 2), backend="reference")
    assert torch.equal(fast[0], plain[0]) and torch.equal(fast[1], plain[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copy_matches_the_reference(dtype: torch.dtype) -> None:
    fast, plain = caches(dtype), caches(dtype)
    copy_blocks(*fast, ids(1, 1, 7), ids(0, 8, 3), backend="cpu")
    copy_blocks(*plain, ids(1, 1, 7), ids(0, 8, 3), backend="reference")
    assert torch.equal(fast[0], plain[0]) and torch.equal(fast[1], plain[1])
    assert torch.equal(fast[1][8], caches(dtype)[1][1]) and torch.equal(fast[0][3], caches(dtype)[0][7])
    copy_blocks(*fast, ids(), ids())
    assert torch.equal(fast[0], plain[0])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "slots, message", [((0, 36), r"slots\[1\]=36"), ((-1, 2), r"slots\[0\]=-1"), ((5, 5), "5 more")]
)
def test_a_bad_slot_is_refused_before_any_write(backend: str, slots: tuple[int, ...], message: str) -> None:
    cache, before = caches(), caches()
    with pytest.raises(ValueError, match=message):
        store_kv(torch.ones(2, 3, 5), torch.ones(2, 3, 5), *cache, ids(*slots), backend=backend)
    assert torch.equal(cache[0], before[0]) and torch.equal(cache[1], before[1])


@pytest.mark.parametrize(
    "src, dst, message",
    [
        ((0, 9), (1, 2), r"src\[1\]=9"),
        ((0, 1), (2, -1), r"dst\[1\]=-1"),
        ((0, 1), (2, 2), "2 more"),
        ((0, 1), (1, 2), "block 1"),
    ],
)
def test_a_bad_block_is_refused_before_any_write(src: tuple[int, ...], dst: tuple[int, ...], message: str) -> None:
    cache, before = caches(), caches()
    with pytest.raises(ValueError, match=message):
        copy_blocks(*cache, ids(*src), ids(*dst))
    assert torch.equal(cache[0], before[0]) and torch.equal(cache[1], before[1])


def test_wrong_tensors_are_refused() -> None:
    k_cache, v_cache = caches()
    k = torch.ones(2, 3, 5)
    for arguments in [
        (k[:, :2], k, k_cache, v_cache, ids(0, 1)),
        (k, k, k_cache, v_cache, ids(0, 1, 2)),
        (k.half(), k, k_cache, v_cache, ids(0, 1)),
        (k, k, k_cache, v_cache.half(), ids(0, 1)),
        (k, k, k_cache, v_cache, ids(0, 1).long()),
        (k, k, k_cache.transpose(0, 1), v_cache.transpose(0, 1), ids(0, 1)),
    ]:
        with pytest.raises(ValueError, match="store_kv"):
            store_kv(*arguments)
    with pytest.raises(ValueError, match="copy_blocks"):
        copy_blocks(k_cache, v_cache, ids(0), ids(1, 2))
