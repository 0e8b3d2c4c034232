"""Attention of packed rows: each example's is what it is alone, in gradients that are computed later too."""

import threading
from collections.abc import Callable

import pytest
import torch
from families import FixedPrompts, build
from lessons import assert_close, gradients, lessons
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mstar_engine.models.attention import LayerCall, causal_tail, plain_attention
from mstar_engine.models.memory import checkpoint_activations
from mstar_engine.models.packed_attention import PackedAttention, packed_attention
from mstar_engine.train.collate import collate
from mstar_engine.train.likelihood import response_nll
from mstar_engine.train.packing import pack, why_not_packed
from mstar_engine.types import TrainingExample

torch.set_num_threads(1)

WINDOW = 4
TEXT = dict(
    vocab_size=120,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
)
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]


def text_model(kind: str) -> PreTrainedModel:
    """A language model whose layers have a window, or a window and a soft cap that the scores reach."""
    torch.manual_seed(1)
    text = TEXT | dict(sliding_window=WINDOW, layer_types=WINDOWED)
    if kind == "window":
        config = AutoConfig.for_model("qwen2", **text | dict(use_sliding_window=True))
    else:
        config = AutoConfig.for_model("gemma2", head_dim=16, attn_logit_softcapping=2.0, **text)
    # sdpa has no soft cap: the one it is compared with must
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if kind == "softcap" else "sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model.eval().float()


def subject(kind: str) -> tuple[PreTrainedModel, FixedPrompts, list[TrainingExample]]:
    if kind not in ("window", "softcap"):
        return build(kind), *lessons(kind)
    encoder, examples = lessons("llava", count=4)
    for prompt in encoder.prompts.values():  # a language model sees no image
        prompt.inputs.clear()
    return text_model(kind), encoder, examples


KINDS = ["llava", "qwen2_5_vl", "qwen3_vl", "window", "softcap"]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("checkpointing", ["kept", "computed again", "computed again, reentrant"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_padded_examples(kind: str, checkpointing: str) -> None:
    """Backward runs in a thread of its own, as autograd's does on CUDA: it sees no context variable of ours."""
    model, encoder, examples = subject(kind)
    padded = response_nll(model, collate(examples, encoder))
    expected = gradients(padded, model)
    if checkpointing == "computed again":
        checkpoint_activations(model)
    elif checkpointing == "computed again, reentrant":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        model.enable_input_require_grads()
    model.train()
    packed = response_nll(model, pack(model, examples, encoder))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    backward = threading.Thread(target=packed.backward)
    backward.start()
    backward.join()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close(found, expected)


@pytest.mark.parametrize("kind", ["window", "softcap"])
def test_the_proof_holds_for_windows_and_soft_caps(kind: str) -> None:
    model, encoder, examples = subject(kind)
    assert why_not_packed(model, examples, encoder) is None


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_nothing_is_made_of_the_rows_length_squared() -> None:
    model = text_model("window").train()
    checkpoint_activations(model)
    encoder, examples = lessons("llava", count=60)
    for prompt in encoder.prompts.values():
        prompt.inputs.clear()
    batch = pack(model, examples, encoder)
    length = batch.labels.shape[1]
    assert length**2 > 4 * length * TEXT["vocab_size"]  # or logits would hide a mask
    with Largest() as largest:
        response_nll(model, batch).backward()
    assert 0 < largest.elements < length**2
    model.config._attn_implementation = "flex_attention"  # what is not replaced does make one, or its like
    with packed_attention(model, batch.lengths) as step:
        assert step is None


@pytest.mark.parametrize("kind", ["implementation", "dropout", "layers"])
def test_what_it_cannot_stand_for_is_left_alone(kind: str) -> None:
    model = build("qwen2_5_vl")
    config = model.config.get_text_config()
    if kind == "implementation":
        AttentionInterface.register("own", sdpa_attention_forward)
        config._attn_implementation = "own"
    elif kind == "dropout":
        config.attention_dropout = 0.1
    else:
        config.layer_types = ["chunked_attention"] * 3
    before = config._attn_implementation
    with packed_attention(model, [3, 4]) as step:
        assert step is None and config._attn_implementation == before
    with packed_attention(model, None) as step:
        assert step is None


def test_the_model_is_as_before_afterwards() -> None:
    model = build("llava")
    checkpoint_activations(model)
    layer = model.model.language_model.layers[0]
    before = layer._gradient_checkpointing_func
    with packed_attention(model, [2, 3]) as step:
        assert isinstance(step, PackedAttention)
        assert layer._gradient_checkpointing_func is not before
    assert layer._gradient_checkpointing_func is before
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def layer_call(
    length: int,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    size: int = 16,
    window: int | None = None,
    cap: float | None = None,
) -> LayerCall:
    generator = torch.Generator().manual_seed(length)

    def random(count: int) -> torch.Tensor:
        return torch.randn(1, count, length, size, generator=generator).requires_grad_()

    return LayerCall(0, random(heads), random(kv_heads), random(kv_heads), 0.3, window, cap, usual=unused)


def unused() -> torch.Tensor:
    raise AssertionError("the model's own attention is not asked")


def block_diagonal(lengths: list[int], window: int | None) -> torch.Tensor:
    blocks = [causal_tail(length, length, window, torch.device("cpu")) for length in lengths]
    return torch.block_diag(*blocks).bool()


@pytest.mark.parametrize("window", [None, 1, 5, 50])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_each_example_among_itself(window: int | None, cap: float | None) -> None:
    lengths = [1, 7, 33, 2]
    call = layer_call(sum(lengths), window=window, cap=cap)
    found = PackedAttention(lengths).attend(call)
    mask = block_diagonal(lengths, window)
    expected = plain_attention(call.query, call.key, call.value, mask, call.scale, cap)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    inputs = [call.query, call.key, call.value]
    both = [torch.autograd.grad((output * weights).sum(), inputs) for output in (found, expected)]
    for mine, theirs in zip(*both, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[3, 3], [4, 4]])
def test_other_positions_than_were_packed_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="attends over 1 rows of 7 positions"):
        PackedAttention(lengths).attend(layer_call(7))


def varlen_by_formula(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, begins: torch.Tensor, *rest: object, **options: object
) -> torch.Tensor:
    """torch's variable-length attention as it is documented, for a machine without its kernel."""
    assert begins.dtype == torch.int32 and rest[0] is begins
    lengths = begins.diff().tolist()
    assert rest[1:] == (max(lengths), max(lengths))
    left, right = options["window_size"]
    assert right == 0 and key.shape[1] < query.shape[1]
    mask = block_diagonal(lengths, None if left == -1 else left + 1)
    batched = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return plain_attention(*batched, mask, options["scale"])[0]


@pytest.mark.parametrize("window", [None, 5])
def test_what_varlen_attn_is_given(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "mstar_engine.models.packed_attention"
    lengths = [1, 7, 33, 2]
    call = layer_call(sum(lengths), window=window)
    expected = PackedAttention(lengths).attend(call)
    takes: Callable[[LayerCall], bool] = lambda call: True  # noqa: E731
    monkeypatch.setattr(f"{module}.takes_varlen", takes)
    monkeypatch.setattr(f"{module}.varlen_attn", varlen_by_formula)
    step = PackedAttention(lengths)
    torch.testing.assert_close(step.attend(call), expected)
    assert step.used == "varlen_attn"
