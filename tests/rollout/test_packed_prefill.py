"""Prompts of different lengths go through one forward, and nothing that is drawn changes by it; or the log says why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import wraps

import pytest
import torch
from families import CONFIGS, IMAGE, IMAGES, VISION_END, VISION_START, VOCABULARY, FixedPrompts, build, prompt

from mstar_engine.models.packed_attention import PackedAttention
from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout.packed_prefill import joinable
from mstar_engine.types import Problem, SamplingParams

PACKING = [family for family in CONFIGS if family != "gemma3"]
GRIDS = ((4, 6), (8, 4), (4, 4))
SHOWN = (1, 2, 0, 1, 2, 0)
"""Images of each problem."""
EVERY = range(len(SHOWN))
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def processor():
    return build_tiny(0)[1]


def shown(family: str, length: int, seed: int, images: int) -> EncodedPrompt:
    """Random text with images in it; a family that takes images of any size is given several sizes."""
    if images == 0:
        return prompt(family, length, seed, image=False)
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(10, VOCABULARY, (length,), generator=generator)
    ids, parts = [text[:2]], []
    for number in range(images):
        if family.startswith("qwen"):
            height, width = GRIDS[(seed + number) % len(GRIDS)]
            tokens = torch.tensor([VISION_START, *[IMAGE] * (height * width // 4), VISION_END])
            patches = torch.randn(height * width, 3 * 2 * 4 * 4, generator=generator)
            inputs = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, height, width]])}
        else:
            tokens, inputs = IMAGES[family](generator)
        ids += [tokens, text[2 + number : 3 + number]]
        parts.append(inputs)
    ids = torch.cat([*ids, text[2 + images :]])
    names = {"qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}
    types = {names[family]: (ids == IMAGE).long()} if family in names else {}
    return EncodedPrompt(ids, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, types)


def engine_for(family: str, processor, packed: bool | None, device: str = "cpu", **options) -> RolloutEngine:
    prompts = {f"p{i}": shown(family, 6 + 5 * i, seed=i, images=SHOWN[i]) for i in EVERY}
    model = options.pop("model", None) or build(family)
    engine = RolloutEngine(model.to(device), FixedPrompts(prompts, processor), packed_prefill=packed, **options)
    engine.stop_ids = lambda: []  # random weights: compare full lengths
    engine.proof.check = lambda *_: None  # by forwards of its own, which are not to be counted
    return engine


def draw(engine: RolloutEngine, numbers: Iterable[int] = EVERY, max_tokens: int = 12) -> dict[str, list[int]]:
    params = SamplingParams(n=1, temperature=0.0, max_tokens=max_tokens)
    groups = engine.generate([Problem(id=f"p{i}", question="") for i in numbers], params)
    return {group.problem.id: group.responses[0].token_ids.tolist() for group in groups}


@contextmanager
def prefills(engine: RolloutEngine) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what the enclosed prefills fed."""
    shapes: list[tuple[int, ...]] = []

    def watch(module, arguments, given) -> None:
        if given["input_ids"].shape[1] > 1:
            shapes.append(tuple(given["input_ids"].shape))

    handle = engine.model.register_forward_pre_hook(watch, with_kwargs=True)
    yield shapes
    handle.remove()


def lengths(engine: RolloutEngine) -> list[int]:
    return [len(engine.encoder.prompts[f"p{i}"].input_ids) for i in EVERY]


@pytest.mark.parametrize("capacity", [0, 1 << 24])
@pytest.mark.parametrize("family", PACKING)
def test_greedy_tokens_are_those_of_prompts_by_shape(family: str, capacity: int, processor) -> None:
    """With two images, with one and with none: first run both ways, then in one forward. The tokens behind them are
    right only if keys, values and rotary offsets are."""
    plain = engine_for(family, processor, False)
    packed = engine_for(family, processor, True, image_cache_memory=capacity)
    expected, own, whole = draw(plain), lengths(packed), sum(lengths(packed))
    with prefills(packed) as shapes:
        assert draw(packed) == expected
    assert shapes == [(1, whole), *((1, length) for length in own)]
    assert packed.packed_prefill.refused is None
    with prefills(packed) as shapes:
        assert draw(packed) == expected
    assert shapes == [(1, whole)]
    assert packed.stats.prefill_tokens == plain.stats.prefill_tokens == whole
    if capacity:
        pictured = len([images for images in SHOWN if images])
        assert (packed.features.hits, packed.features.misses) == (pictured, pictured)


@pytest.mark.parametrize("family", PACKING)
def test_some_images_known_and_some_not(family: str, processor) -> None:
    plain = engine_for(family, processor, False)
    packed = engine_for(family, processor, True, image_cache_memory=1 << 24)
    draw(packed, [0, 2])  # proves it, and keeps the first
    with prefills(packed) as shapes:
        for numbers in ([1, 0, 3, 4], [5, 3, 0, 2], [4, 0, 1, 3]):
            assert draw(packed, numbers) == draw(plain, numbers)
    assert len(shapes) == 3
    assert (packed.features.hits, packed.features.misses) == (1 + 2 + 4, 4)


def test_the_processor_runs_prompts_by_shape_unless_asked(processor) -> None:
    engine = engine_for("llava", processor, None)
    assert engine.packed_prefill is None
    with prefills(engine) as shapes:
        draw(engine)
    assert len(shapes) == len(SHOWN)


def test_every_kind_of_input_is_proven(processor) -> None:
    """Text that packs says nothing of images."""
    engine = engine_for("qwen3_vl", processor, True)
    for numbers, forwards in (([2, 5], 3), ([2, 5], 1), ([0, 1], 3), ([3, 2], 1), ([0], 1)):
        with prefills(engine) as shapes:
            draw(engine, numbers)
        assert len(shapes) == forwards


def test_a_preempted_prompt_is_packed_again(processor) -> None:
    plain = engine_for("qwen2_5_vl", processor, False, block_size=4)
    blocks = 30 * 4 * plain.shape.bytes_per_token
    tight = engine_for("qwen2_5_vl", processor, True, block_size=4, kv_cache_memory=blocks, policy="watermark")
    assert draw(tight) == draw(plain)
    assert tight.stats.preemptions > 0 and tight.packed_prefill.refused is None


def test_a_family_whose_images_shape_its_attention_goes_on_by_shape(processor, caplog) -> None:
    plain, packed = (engine_for("gemma3", processor, asked) for asked in (False, True))
    for _ in range(2):
        with prefills(packed) as shapes:
            assert draw(packed) == draw(plain)
        assert shapes == [(1, length) for length in lengths(packed)]
    assert caplog.text.count("model family 'gemma3' cannot pack them (its attention depends on token_type_ids)") == 1


def test_a_window_holds_in_a_packed_row(processor) -> None:
    """Gemma 3's layers with a window, for prompts without images."""
    plain, packed = (engine_for("gemma3", processor, asked) for asked in (False, True))
    for engine in (plain, packed):
        engine.encoder.prompts = {f"p{i}": prompt("gemma3", 12 + 5 * i, i, image=False) for i in range(4)}
    for _ in range(2):
        assert draw(packed, range(4)) == draw(plain, range(4))
    assert packed.packed_prefill.refused is None


@pytest.mark.parametrize("through", ["attention", "a convolution", "rotary offsets", "image features", "an error"])
def test_a_family_that_lies_is_caught(through: str, processor, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn is then what it was without packing, and the log says why, once."""
    family = "llava" if through == "image features" else "qwen2_5_vl"
    plain, packed = (engine_for(family, processor, asked, image_cache_memory=1 << 24) for asked in (False, True))
    reason = "logits of packed prompts differ from those of single ones by"
    if through == "attention":
        monkeypatch.setattr(PackedAttention, "attend", lambda self, call: call.usual())
    elif through == "a convolution":
        for engine in (plain, packed):
            layer = engine.model.model.language_model.layers[1]
            layer.register_forward_hook(lambda module, inputs, output: output + output.roll(1, dims=1))
    elif through == "rotary offsets":
        index = type(packed.model.model).get_rope_index

        @wraps(index)
        def shifted(*given, **named):
            positions, deltas = index(*given, **named)
            return positions, deltas + 1

        monkeypatch.setattr(type(packed.model.model), "get_rope_index", shifted)
        for engine in (plain, packed):  # it would refuse the family
            monkeypatch.setattr(engine.proof, "check", lambda *_: None)
        reason = "rotary offsets ["
    elif through == "image features":  # a tower that sees other images of the batch
        for engine in (plain, packed):
            engine.model.model.vision_tower.register_forward_pre_hook(
                lambda module, given, named: (
                    ((), named | {"pixel_values": named["pixel_values"].flip(0)})
                    if "pixel_values" in named
                    else ((given[0].flip(0), *given[1:]), named)
                ),
                with_kwargs=True,
            )
    else:

        def refuse(self, call):
            raise KeyError("what only a family knows\nand more")

        monkeypatch.setattr(PackedAttention, "attend", refuse)
        reason = "'what only a family knows"
    for _ in range(2):
        assert draw(packed) == draw(plain)
    assert caplog.text.count(f"model family {family!r} cannot pack them ({reason}") == 1


def test_a_family_that_computes_all_logits_goes_on_by_shape(processor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava")
    whole = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, **given: whole(self, **given))
    packed = engine_for("llava", processor, True, model=model)
    assert draw(packed) == draw(engine_for("llava", processor, False))
    assert packed.packed_prefill.refused == "it computes the logits of every position"


@pytest.mark.parametrize("proven", [False, True])
def test_out_of_memory_is_no_proof(proven: bool, processor, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = engine_for("llava", processor, True)
    if proven:
        draw(packed)

    def exhausted(self, call):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(PackedAttention, "attend", exhausted)
        with pytest.raises(ValueError, match="out of memory in a prefill of 6 prompts"):
            draw(packed)
    assert packed.packed_prefill.refused is None
    assert draw(packed) == draw(engine_for("llava", processor, False))


def test_inputs_that_cannot_be_concatenated_make_rows_of_their_own(processor, monkeypatch) -> None:
    """Images of several sizes where a family has a dimension for each side."""
    prompts = [shown("llava", 5, i, images=int(i != 2)) for i in range(5)]
    for i in (1, 3):
        prompts[i].inputs["pixel_values"] = torch.zeros(1, 3, 16, 24)
    assert joinable(prompts) == [[0, 2, 4], [1, 3]]
    engine = engine_for("llava", processor, True)
    expected = draw(engine_for("llava", processor, False))
    module = "mstar_engine.rollout.packed_prefill.joinable"
    monkeypatch.setattr(module, lambda prompts: [[0, 3, 4], [5, 1], [2]])
    draw(engine)
    with prefills(engine) as shapes:
        assert draw(engine) == expected
    own = lengths(engine)
    assert shapes == [(1, own[0] + own[3] + own[4]), (1, own[5] + own[1]), (1, own[2])]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("family", PACKING)
def test_bf16_logits_err_at_most_twice_as_much_as_by_shape(family: str, device: str, processor) -> None:
    """Against float32; on a device packing is the default."""
    half = engine_for(family, processor, True if device == "cpu" else None, device, model=build(family).bfloat16())
    whole = engine_for(family, processor, False, device)
    found = []
    for engine in (half, whole):
        logits: list[torch.Tensor] = []
        engine.proof.check = lambda *_: None  # by forwards of its own
        engine.model.register_forward_hook(lambda module, given, output, to=logits: to.append(output.logits[0].float()))
        draw(engine, max_tokens=1)
        found.append(logits)
    (packed, *alone), exact = found[0], torch.cat(found[1])
    assert half.packed_prefill.refused is None and len(packed) == len(alone) == len(SHOWN)
    errors = [(logits - exact).norm() for logits in (packed, torch.cat(alone))]
    assert errors[0] <= 2 * errors[1]
