"""Packing: examples in one row learn what they learn in rows of their own, or the run pads and says why."""

from copy import deepcopy

import pytest
import torch
from families import CONFIGS, build
from lessons import assert_close, gradients, lessons
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mstar_engine.models.backbone import output_head
from mstar_engine.train.collate import IGNORE, collate
from mstar_engine.train.likelihood import Likelihood, response_nll
from mstar_engine.train.packing import pack, why_not_packed
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer

torch.set_num_threads(1)


PACKING = [family for family in CONFIGS if family != "gemma3"]


@pytest.mark.parametrize("family", PACKING)
def test_loss_and_gradients_are_those_of_padded_examples(family: str) -> None:
    model = build(family)
    encoder, examples = lessons(family)
    padded = response_nll(model, collate(examples, encoder))
    packed = response_nll(model, pack(model, examples, encoder))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    expected = gradients(padded, model)
    assert_close(gradients(packed, model), expected)
    parts = response_nll(model, pack(model, examples, encoder), output_head(model))
    assert_close(gradients(parts, model), expected)
    assert why_not_packed(model, examples, encoder) is None


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_layout(family: str) -> None:
    model = build(family)
    encoder, examples = lessons(family)
    batch = pack(model, examples, encoder)
    prompts = [encoder.encode(example.problem) for example in examples]
    lengths = [len(p.input_ids) + len(e.response_ids) for p, e in zip(prompts, examples)]
    assert batch.inputs["input_ids"].shape == batch.labels.shape == batch.owner.shape == (1, sum(lengths))
    assert batch.tokens == int((batch.labels != IGNORE).sum())
    text = batch.inputs["position_ids"] if family == "llava" else batch.inputs["position_ids"][0]
    assert text[0].tolist() == [place for length in lengths for place in range(length)]
    rows, columns = (batch.labels != IGNORE).nonzero(as_tuple=True)
    weights = [example.weight for example in examples for _ in example.response_ids]
    assert batch.weights_at(rows, columns).tolist() == weights
    if family == "qwen2_5_vl":  # 3 + 2 tokens, then an image of 2 x 3 patches
        assert batch.inputs["position_ids"].shape == (4, 1, sum(lengths))
        height = batch.inputs["position_ids"][2, 0]
        assert height[4:10].tolist() == [4, 4, 4, 5, 5, 5]


def test_flash_attention_sees_where_examples_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the attention of each layer is one row and the text positions, by which it finds the examples."""
    model = build("qwen2_5_vl")
    encoder, examples = lessons("qwen2_5_vl")
    seen = []

    def attention(module, query, key, value, mask, **options):
        seen.append((query.shape[0], options["position_ids"]))
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    AttentionInterface.register("watched", attention)
    model.model.language_model.config._attn_implementation = "watched"
    batch = pack(model, examples, encoder)
    seen.clear()
    with torch.no_grad():
        model.base_model(**batch.inputs, use_cache=False)
    assert len(seen) == 3
    for rows, positions in seen:
        assert rows == 1 and torch.equal(positions, batch.inputs["position_ids"][0])


@pytest.mark.parametrize("through", ["its own attention", "a convolution"])
def test_a_leak_between_examples_is_noticed(through: str, caplog: pytest.LogCaptureFixture) -> None:
    """A family that ignores where examples begin pads instead, and the log says so, once."""
    model = build("llava")
    encoder, examples = lessons("llava")
    layer = model.model.language_model.layers[1]
    if through == "a convolution":
        layer.register_forward_hook(lambda module, inputs, output: output + output.roll(1, dims=1))
    else:  # given no mask it attends to all that came before
        AttentionInterface.register("unmasked", sdpa_attention_forward)
        model.model.language_model.config._attn_implementation = "unmasked"
    objective, plain = Likelihood(packing=True), Likelihood()
    for _ in range(2):
        runs = list(objective.runs(model, examples, encoder, 60, None))
        assert runs == list(plain.runs(model, examples, encoder, 60, None))
        assert torch.equal(objective.loss(model, runs[0], encoder, 0), plain.loss(model, runs[0], encoder, 0))
    assert caplog.text.count("model family 'llava' cannot pack (hidden states of packed examples differ") == 1


@pytest.mark.parametrize("trouble", ["no index", "raises"])
def test_a_family_that_places_tokens_itself_pads(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen2_5_vl")
    encoder, examples = lessons("qwen2_5_vl")
    if trouble == "no index":
        monkeypatch.delattr(type(model.model), "get_rope_index")
    else:

        def refuse(*arguments, **options):
            raise RuntimeError("one row of images each\nand more")

        monkeypatch.setattr(type(model.model), "get_rope_index", refuse)
    wanted = "it computes positions inside its forward" if trouble == "no index" else "one row of images each"
    assert why_not_packed(model, examples, encoder) == wanted


def test_a_family_whose_images_shape_its_attention_pads() -> None:
    """Packed by hand, Gemma 3's examples would see the wrong image blocks in layers with a window."""
    model = build("gemma3")
    encoder, examples = lessons("gemma3")
    assert why_not_packed(model, examples, encoder) == "its attention depends on token_type_ids"


def trainer(model: torch.nn.Module, encoder, **options) -> Trainer:
    objective = Likelihood(packing=options.pop("packing", False))
    return Trainer(model, encoder, Schedule(peak=1e-3), objective=objective, max_grad_norm=1e9, **options)


def test_steps_fill_rows_up_to_the_token_limit() -> None:
    """One optimizer step, packed into rows of at most 70 tokens, is the step of a padded batch."""
    model = build("llava")
    encoder, examples = lessons("llava", count=9)
    packing, padding = (
        trainer(deepcopy(model), encoder, packing=on, max_tokens=70 if on else None) for on in (True, False)
    )
    runs = list(packing.objective.runs(packing.model, examples, encoder, 70, None))
    lengths = [sum(len(encoder.encode(e.problem).input_ids) + len(e.response_ids) for e in run) for run in runs]
    assert [e for run in runs for e in run] == examples and max(lengths) <= 70 and len(runs) < len(examples)
    for a, b in zip(lengths, runs[1:]):  # each row is full: the next example would not have fitted
        assert a + len(encoder.encode(b[0].problem).input_ids) + len(b[0].response_ids) > 70
    mine, theirs = packing.step(examples), padding.step(examples)
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-5) and mine.grad_norm == pytest.approx(
        theirs.grad_norm, rel=1e-4
    )
    assert packing.objective._packs is True


def test_examples_that_cannot_be_paired_decide_nothing() -> None:
    """A single example is padded, which is nothing; the next two tell."""
    model = build("llava")
    encoder, examples = lessons("llava")
    objective = Likelihood(packing=True)
    assert len(list(objective.runs(model, examples[:1], encoder, 70, None))) == 1 and objective._packs is None
    list(objective.runs(model, examples, encoder, 70, None))
    assert objective._packs is True
