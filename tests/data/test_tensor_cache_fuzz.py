"""Entries that a disk, a crash or another process spoiled: never made, never wrong, never in the way."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
import torch

from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.data.tensor_file import SMALL, TensorFileError, read_tensors

torch.set_num_threads(1)
KEY = "ab" * 32
ENTRIES = {
    "small": {"ids": torch.arange(200), "types": torch.ones(200, dtype=torch.int32), "sizes": [(3, 4)], "rows": 7},
    "large": {
        "pixels": torch.randn(3, 90, 90, generator=torch.Generator().manual_seed(0)),
        "half": torch.ones(5).half(),
    },
}
HEADERS = (
    b"",
    b"{",
    b"[]",
    b"7",
    b"{}",
    b"\xff\xfe{}",
    b'{"__metadata__": []}',
    b'{"__metadata__": {"values": "{}"}}',
    b'{"__metadata__": {"values": 7, "digest": "0"}}',
    b"[" * 100_000,
    b'{"__metadata__": {"values": "{}", "digest": "0"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}',
    b'{"__metadata__": {"values": "{}", "digest": "0"}, "a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}',
    b'{"__metadata__": {"values": "{}", "digest": "0"}, "a": {"dtype": "F32", "shape": [-9], "data_offsets": [0, 8]}}',
    b'{"__metadata__": {"values": "{}", "digest": "0"}, "a": {"dtype": "U8", "shape": [1e400], "data_offsets": [0]}}',
    b'{"__metadata__": {"values": "{}", "digest": "0"}, "a": {"dtype": "U8", "shape": [' + b"9" * 40 + b"]}}",
    b'{"__metadata__": {"values": "{}", "digest": "0"}, "a": {"dtype": [], "shape": {}, "data_offsets": [-8, -1]}}',
)


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[name], other[name]) for name in one)
    return type(one) is type(other) and one == other


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """The bytes of an entry with one thing wrong, as often in the header as behind it."""
    header = 8 + int.from_bytes(data[:8], "little")
    place = rng.randrange(header) if rng.random() < 0.5 else rng.randrange(len(data))
    kind = rng.choice(("bit", "bit", "byte", "cut", "zeros", "inserted", "removed", "swapped"))
    if kind == "bit":
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == "byte":
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if kind == "cut":
        return data[:place]
    if kind == "zeros":
        length = min(rng.choice((8, 512, 4096)), len(data) - place)
        return data[:place] + bytes(length) + data[place + length :]
    if kind == "swapped" and len(data) > 3 * 8192:
        return data[:-16384] + data[-8192:] + data[-16384:-8192]
    return data[:place] + (b"7" + data[place:] if kind == "inserted" else data[place + 1 :])


@pytest.mark.parametrize("name", ENTRIES)
def test_a_spoiled_entry_is_none_or_itself(tmp_path, name):
    rng, cache = random.Random(name), TensorCache(tmp_path)
    cache.put(KEY, ENTRIES[name])
    (path,) = tmp_path.rglob("*.safetensors")
    data, refused = path.read_bytes(), 0
    assert (len(data) > SMALL) == (name == "large")
    for _ in range(400):
        path.write_bytes(data)
        assert equal(cache.get(KEY), ENTRIES[name])  # and is known to be sound, as it is now
        wrong = spoiled(data, rng)
        path.write_bytes(wrong)
        for reader in (cache, TensorCache(tmp_path)):
            found = reader.get(KEY)
            # A change that says the same in JSON (white space, a name's order) is none.
            assert found is None or equal(found, ENTRIES[name]), wrong[:300]
            refused += found is None
    assert refused > 700


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("length", [0, 16, 100_000])
def test_hostile_headers_are_refused(tmp_path, header, length):
    path = tmp_path / KEY[:2] / f"{KEY[2:]}.safetensors"
    path.parent.mkdir()
    for said in (len(header), 0, 2**62, len(header) + length):
        path.write_bytes(said.to_bytes(8, "little") + header + bytes(length))
        assert TensorCache(tmp_path).get(KEY) is None


def test_an_entry_is_only_its_own_key_s(tmp_path):
    cache = TensorCache(tmp_path)
    cache.put(KEY, ENTRIES["small"])
    (path,) = tmp_path.rglob("*.safetensors")
    os.link(path, path.with_name(f"{'0' * 62}.safetensors"))
    assert cache.get(KEY[:2] + "0" * 62) is None and cache.get(KEY) is not None


def test_the_reader_reads_what_the_library_wrote(tmp_path):
    from safetensors.torch import save_file

    dtypes = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    dtypes += (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for size in (0, 3, 40_000):
        tensors = {str(dtype): torch.arange(size).reshape(1, size).to(dtype) for dtype in dtypes}
        tensors["number"] = torch.tensor(1.5)
        save_file(tensors, tmp_path / "a", {"about": "é"})
        metadata, found, _ = read_tensors(str(tmp_path / "a"))
        assert metadata == {"about": "é"} and found.keys() == tensors.keys()
        assert all(equal(found[name], tensors[name]) for name in tensors)
    with pytest.raises(TensorFileError, match="No such file"):
        read_tensors(str(tmp_path / "b"))


def test_writing_into_a_mapped_tensor_does_not_reach_the_file(tmp_path):
    cache = TensorCache(tmp_path)
    cache.put(KEY, ENTRIES["large"])
    cache.get(KEY)["pixels"].zero_()
    assert equal(TensorCache(tmp_path).get(KEY), ENTRIES["large"])


def test_two_processes_write_one_key(tmp_path):
    code = """
import sys, torch
from mstar_engine.data.tensor_cache import TensorCache
for i in range(40):
    cache = TensorCache(sys.argv[1], 10**6)
    assert cache.put("cd" * 32, {"a": torch.full((20_000,), float(sys.argv[2]))})
    kept = cache.get("cd" * 32)
    assert kept is not None and kept["a"][0] in (1, 2) and (kept["a"] == kept["a"][0]).all()
"""
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), value]) for value in "12"]
    assert [process.wait(60) for process in started] == [0, 0]
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


def test_a_full_disk_keeps_nothing_and_stops_nothing(tmp_path):
    code = """
import json, resource, sys, torch
from mstar_engine.data.tensor_cache import TensorCache
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
cache = TensorCache(sys.argv[1], 10**6)
print(json.dumps([cache.put("a" * 64, {"a": torch.ones(n)}) for n in (100, 100_000, 6_000, 100)]))
"""
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == [True, False, False, True]
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert path.suffix == ".safetensors" and path.stat().st_size < 1000


def test_a_folder_that_cannot_be_is_no_cache(tmp_path):
    (tmp_path / "file").write_text("")
    cache = TensorCache(tmp_path / "file", 10**6)
    assert not cache.put(KEY, ENTRIES["small"]) and cache.get(KEY) is None


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / "ab").mkdir()
    old, new = tmp_path / "ab" / ".old.safetensors.1.tmp", tmp_path / "ab" / ".new.safetensors.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    TensorCache(tmp_path, 10**6).put(KEY, ENTRIES["small"])
    assert not old.exists() and new.exists()
