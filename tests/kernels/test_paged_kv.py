"""store_kv and copy_blocks: every form against the reference, bit for bit; refusals leave the cache untouched."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mstar_kernels.dispatch import extension
from mstar_kernels.paged_kv import copy_blocks, store_kv

torch.set_num_threads(1)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
FORMS = ["cpu"] if extension() is not None else []
FORMS += ["interpreted"] if INTERPRETED else [pytest.param("cuda", marks=ON_CUDA)]


def options_of(form: str) -> dict:
    return {"backend": form if form in ("cpu", "reference") else "triton"}


def caches(
    dtype: torch.dtype = torch.float32, blocks: int = 9, block_size: int = 4, heads: int = 3, head_dim: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (blocks, heads, block_size, head_dim)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(2))


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def stored(form: str, k: torch.Tensor, v: torch.Tensor, cache: tuple, slots: torch.Tensor, checked: bool = False):
    """The caches afterwards, on the CPU."""
    moved = [tensor.to("cuda" if form == "cuda" else "cpu") for tensor in (k, v, *cache, slots)]
    store_kv(*moved, **options_of(form), checked=checked)
    return moved[2].cpu(), moved[3].cpu()


def copied(form: str, cache: tuple, src: torch.Tensor, dst: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    moved = [tensor.to("cuda" if form == "cuda" else "cpu") for tensor in (*cache, src, dst)]
    copy_blocks(*moved, **options_of(form))
    return moved[0].cpu(), moved[1].cpu()


def assert_same(found: tuple, wanted: tuple) -> None:
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "tokens, block_size, heads, head_dim", [(0, 4, 3, 5), (1, 1, 1, 1), (7, 4, 3, 5), (40, 16, 4, 80), (130, 32, 2, 64)]
)
def test_store_matches_the_reference(form: str, dtype, tokens: int, block_size: int, heads: int, head_dim: int) -> None:
    k, v = (torch.randn(tokens, heads, head_dim).to(dtype) for _ in range(2))
    slots = torch.randperm(9 * block_size)[:tokens].int()
    shape = dict(block_size=block_size, heads=heads, head_dim=head_dim)
    found = stored(form, k, v, caches(dtype, **shape), slots)
    assert_same(found, stored("reference", k, v, caches(dtype, **shape), slots))
    for token, slot in enumerate(slots.tolist()):
        assert torch.equal(found[0][slot // block_size, :, slot % block_size], k[token])
        assert torch.equal(found[1][slot // block_size, :, slot % block_size], v[token])


@pytest.mark.parametrize("form", ["reference", *FORMS])
@pytest.mark.parametrize("checked", [False, True])
def test_a_token_without_a_slot_is_not_stored(form: str, checked: bool) -> None:
    k, v = torch.randn(5, 3, 5), torch.randn(5, 3, 5)
    k[[1, 3, 4]] = v[[1, 3, 4]] = math.nan
    found = stored(form, k, v, caches(), ids(7, -1, 0, -1, -1), checked)
    assert_same(found, stored("reference", k[[0, 2]], v[[0, 2]], caches(), ids(7, 0)))
    assert_same(stored(form, k, v, caches(), ids(*[-1] * 5), checked), caches())


@pytest.mark.parametrize("form", FORMS)
def test_store_takes_views(form: str) -> None:
    slots = ids(3, 1, 4, 15, 9, 2)
    k, v = torch.randn(3, 6, 5).transpose(0, 1), torch.randn(6, 6, 5)[:, ::2]
    assert_same(stored(form, k, v, caches(), slots), stored("reference", k, v, caches(), slots))
    fused = torch.randn(6, 3, 10)  # keys and values side by side, and an axis that is not the innermost
    k, v = fused[..., :5], fused.transpose(1, 2).contiguous().transpose(1, 2)[..., 5:]
    assert_same(stored(form, k, v, caches(), slots), stored("reference", k, v, caches(), slots))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [5, 700])
def test_copy_matches_the_reference(form: str, dtype: torch.dtype, head_dim: int) -> None:
    before = caches(dtype, head_dim=head_dim)
    before[0][2] = math.nan
    found = copied(form, caches(dtype, head_dim=head_dim), ids(1, 1, 7), ids(0, 8, 3))
    assert_same(found, copied("reference", caches(dtype, head_dim=head_dim), ids(1, 1, 7), ids(0, 8, 3)))
    assert torch.equal(found[1][8], before[1][1]) and torch.equal(found[0][3], before[0][7])
    assert_same(copied(form, found, ids(), ids()), found)


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_copy_in_all_layers(form: str) -> None:
    storage = torch.randn(3, 2, 9, 2, 4, 5)
    found = storage.to("cuda" if form == "cuda" else "cpu", copy=True)
    src, dst = ids(1, 4).to(found.device), ids(0, 8).to(found.device)
    copy_blocks(found[:, 0], found[:, 1], src, dst, **options_of(form))
    wanted = storage.clone()
    for layer in range(3):
        copied("reference", (wanted[layer, 0], wanted[layer, 1]), ids(1, 4), ids(0, 8))
    assert torch.equal(found.cpu(), wanted) and not torch.equal(wanted, storage)
    with pytest.raises(ValueError, match=r"src\[0\]=9"):
        copy_blocks(storage[:, 0], storage[:, 1], ids(9), ids(0))


@pytest.mark.parametrize("form", ["reference", *FORMS])
@pytest.mark.parametrize(
    "slots, message",
    [((0, 36), r"slots\[1\]=36; allowed: -1 to 35"), ((-2, 2), r"slots\[0\]=-2"), ((5, -1, -1, 5), "5 more")],
)
def test_a_bad_slot_is_refused_before_any_write(form: str, slots: tuple[int, ...], message: str) -> None:
    cache = caches()
    with pytest.raises(ValueError, match=message):
        stored(form, torch.ones(len(slots), 3, 5), torch.ones(len(slots), 3, 5), cache, ids(*slots))
    assert_same(cache, caches())


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
    cache = caches()
    with pytest.raises(ValueError, match=message):
        copy_blocks(*cache, ids(*src), ids(*dst))
    assert_same(cache, caches())


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
        (k, k, k_cache[None], v_cache[None], ids(0, 1)),
    ]:
        with pytest.raises(ValueError, match="store_kv"):
            store_kv(*arguments)
    with pytest.raises(ValueError, match="copy_blocks"):
        copy_blocks(k_cache, v_cache, ids(0), ids(1, 2))
    with pytest.raises(ValueError, match="contiguous"):
        copy_blocks(k_cache[None, :, :2], v_cache[None, :, :2], ids(0), ids(1))


# ---- Triton without a GPU


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
def test_triton_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
