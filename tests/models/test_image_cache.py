"""One decoding an image: the caching processor gives what the plain one gives, to the bit, and counts its decodings."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mstar_engine.data.file_image import FileImages
from mstar_engine.data.image_integrity import ImageError
from mstar_engine.data.images import DECODED, read_image
from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.models.image_cache import caching_processor
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem

torch.set_num_threads(1)


@pytest.fixture
def paths(tmp_path):
    """Files of several sizes and kinds; one is turned by its EXIF orientation."""
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = 6
    found = []
    for i, (size, mode) in enumerate((((70, 40), "RGB"), ((200, 300), "L"), ((64, 64), "RGBA"), ((90, 30), "RGB"))):
        image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
        image.save(tmp_path / f"{i}.png", exif=exif if i == 3 else Image.Exif())
        found.append(tmp_path / f"{i}.png")
    return found


def test_a_file_image_is_its_image(paths):
    for path in paths:
        lazy, plain = FileImages().open(path), read_image(path)
        assert lazy.size == plain.size and lazy.mode == "RGB"
        before = DECODED.images
        np.testing.assert_array_equal(np.asarray(lazy), np.asarray(plain))
        assert lazy.resize((9, 9)).tobytes() == plain.resize((9, 9)).tobytes()
        assert lazy.convert("L").tobytes() == plain.convert("L").tobytes() and lazy.copy().tobytes() == plain.tobytes()
        assert DECODED.images == before + 1


def test_a_file_that_changes_is_another_image(paths):
    images = FileImages()
    first = images.open(paths[0])
    Image.new("RGB", (5, 6)).save(paths[0])
    second = images.open(paths[0])
    assert second.size == (5, 6) and second.digest != first.digest
    with pytest.raises(ImageError, match="changed"):
        first.load()


def test_a_file_is_read_again_while_its_time_may_not_tell(paths):
    images, stat = FileImages(), paths[0].stat()
    data = paths[0].read_bytes()
    first = images.open(paths[0]).digest
    paths[0].write_bytes(data[:-1] + b"\0")  # within the same tick of a coarse clock
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert images.open(paths[0]).digest != first
    os.utime(paths[0], (1, 1))
    second = images.open(paths[0])
    paths[0].write_bytes(data)
    os.utime(paths[0], (1, 1))
    assert images.open(paths[0]).digest == second.digest  # an old file is believed by its size and time
    with pytest.raises(ImageError, match="changed"):
        second.load()


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))


@pytest.mark.parametrize(
    "name",
    ["CLIP", "Siglip", "LlavaNext", "LlavaOnevision", "Qwen2VL", "Idefics3", "Gemma3", "Pixtral", "GotOcr2"],
)
def test_every_family_s_image_processor(paths, tmp_path, name):
    kind = getattr(transformers, f"{name}ImageProcessor", None)
    try:
        worker = kind()
    except (ImportError, TypeError) as error:
        pytest.skip(f"{name}: {error}")
    holder = type("Holder", (), {"image_processor": worker})()
    cached = caching_processor(holder, TensorCache(tmp_path / "cache")).image_processor
    assert type(cached).__name__ == type(worker).__name__ and cached.to_dict() == worker.to_dict()
    options = {"return_tensors": "pt"}
    for chosen in ([paths[0]], [paths[1]], [paths[0], paths[0]]):
        plain = worker([read_image(path) for path in chosen], **options)
        for turn in range(2):
            before = DECODED.images
            made = cached([FileImages().open(path) for path in chosen], **options)
            assert (DECODED.images == before) == (turn == 1)
            assert list(made) == list(plain)
            assert all(same(made[name], plain[name]) for name in plain), name


def test_settings_and_options_are_in_the_key(paths, tmp_path):
    cache, processor = TensorCache(tmp_path / "cache"), build_tiny()[1]
    image = FileImages().open(paths[0])
    caching_processor(processor, cache).image_processor([image], return_tensors="pt")
    other = build_tiny()[1]
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    caching_processor(other, cache).image_processor([image], return_tensors="pt")
    caching_processor(processor, cache).image_processor([image], return_tensors="pt", do_rescale=False)
    assert (cache.hits, cache.misses) == (0, 3)
    caching_processor(build_tiny()[1], cache).image_processor([image], return_tensors="pt")
    assert cache.hits == 1


def test_prompts_are_the_same_and_each_image_is_decoded_once(paths, tmp_path):
    processor = build_tiny()[1]
    problems = [Problem(id=str(i), question="What ", images=(path,)) for i, path in enumerate(paths * 3)]
    problems.append(Problem(id="two", question="What ", images=tuple(paths[:2])))
    plain = [PromptEncoder(processor, cache_bytes=0).encode(problem) for problem in problems]
    before = DECODED.images
    for _ in range(2):
        encoder = PromptEncoder(processor, cache_bytes=0, images=TensorCache(tmp_path / "cache"))
        for problem, wanted in zip(problems, plain):
            prompt = encoder.encode(problem)
            assert torch.equal(prompt.input_ids, wanted.input_ids)
            assert same(prompt.inputs["pixel_values"], wanted.inputs["pixel_values"])
        assert encoder.processor is processor
    assert DECODED.images - before == len(paths) + 2  # the pair is another call of the processor


def test_images_in_memory_pass_by_the_cache(paths, tmp_path):
    cache = TensorCache(tmp_path / "cache")
    problem = Problem(id="a", question="What ", images=(read_image(paths[0]),))
    PromptEncoder(build_tiny()[1], images=cache).encode(problem)
    assert cache.hits == cache.misses == 0 and not (tmp_path / "cache").exists()


def test_a_damaged_image_names_the_problem(paths, tmp_path):
    data = bytearray(paths[0].read_bytes())
    data[len(data) // 2] ^= 1
    paths[0].write_bytes(data)
    encoder = PromptEncoder(build_tiny()[1], images=TensorCache(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"problem 'p7': cannot read image .*0\.png: damaged"):
        encoder.encode(replace(Problem(id="p7", question="What "), images=(paths[0],)))
