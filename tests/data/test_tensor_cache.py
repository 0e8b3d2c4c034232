"""Entries of the cache: as they were put, whole or not there, bounded, and shared by processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mstar_engine.data.tensor_cache import TensorCache

VALUES = {
    "pixels": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "crops": [[torch.zeros(2), torch.ones(1, dtype=torch.int64)], []],
    "sizes": [(3, 4), [5, None]],
    "rows": 7,
}


def key(i: int) -> str:
    return f"{i:064x}"


def assert_same(one, other) -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other) and len(one) == len(other)
        for a, b in zip(one, other):
            assert_same(a, b)
    else:
        assert one == other


def test_what_was_put_is_got_back_by_another(tmp_path):
    cache = TensorCache(tmp_path)
    assert cache.get(key(1)) is None and cache.put(key(1), VALUES)
    for reader in (cache, TensorCache(tmp_path)):
        kept = reader.get(key(1))
        assert list(kept) == list(VALUES)
        for name, value in VALUES.items():
            assert_same(value, kept[name])
    assert (cache.hits, cache.misses) == (1, 1)


def test_shared_storage_and_views_are_kept_by_value(tmp_path):
    base = torch.arange(10)
    TensorCache(tmp_path).put(key(1), {"a": base, "b": base[::2], "c": base})
    assert torch.equal(TensorCache(tmp_path).get(key(1))["b"], base[::2])


def test_other_kinds_are_not_kept(tmp_path):
    assert not TensorCache(tmp_path).put(key(1), {"a": object()}) and not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("damage", [b"", b"\0" * 7, "cut", "json"])
def test_a_damaged_entry_was_never_made(tmp_path, damage):
    cache = TensorCache(tmp_path)
    cache.put(key(1), VALUES)
    (path,) = tmp_path.rglob("*.safetensors")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-8], "json": data[:8] + b"}" + data[9:]}.get(damage, damage))
    assert cache.get(key(1)) is None
    assert cache.put(key(1), VALUES) and cache.get(key(1)) is not None


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    cache = TensorCache(tmp_path)
    monkeypatch.setattr(
        "mstar_engine.data.tensor_cache.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    assert not cache.put(key(1), VALUES) and not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_folder_is_bounded_and_what_is_used_stays(tmp_path):
    cache = TensorCache(tmp_path, max_bytes=40_000)
    mapped = None
    for i in range(60):
        cache.put(key(i), {"a": torch.full((1000,), i, dtype=torch.uint8)})
        kept = cache.get(key(0))
        assert kept is not None
        mapped = mapped or kept
    held = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert 20_000 < held <= 40_000
    assert cache.get(key(1)) is None and cache.get(key(59)) is not None
    assert (mapped["a"] == 0).all()


def test_processes_share_a_folder(tmp_path):
    code = """
import sys, torch
from mstar_engine.data.tensor_cache import TensorCache
cache = TensorCache(sys.argv[1], int(sys.argv[2]))
for i in range(150):
    key = f"{i % 50:064x}"
    kept = cache.get(key)
    assert kept is None or (kept["a"] == i % 50).all(), key
    if kept is None:
        assert cache.put(key, {"a": torch.full((500,), i % 50)})
"""
    for bound in ("0", "100000"):
        started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / bound), bound]) for _ in range(2)]
        assert [process.wait(60) for process in started] == [0, 0]
        assert not [path for path in Path(tmp_path / bound).rglob("*.tmp")]
