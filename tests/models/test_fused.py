"""Fused layers: taken where they compute what the family's code does, refused where not, and gone outside `active`."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from families import CONFIGS, VOCABULARY, build
from torch import nn

from mstar_engine.models import fused as module
from mstar_engine.models.compatibility import KVShape, probe
from mstar_engine.models.fused import FusedLayers

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]


def logits(model: nn.Module) -> torch.Tensor:
    tokens = torch.arange(10, 22, device=model.device).view(3, 4) % VOCABULARY
    positions = torch.arange(4, device=model.device).expand(3, -1)
    with torch.no_grad():
        return model(input_ids=tokens, position_ids=positions, use_cache=False).logits


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """How often each kernel is called."""
    seen: dict[str, int] = {}

    def counted(name: str):
        op = getattr(module, name)

        def call(*args, **kwargs):
            seen[name] = seen.get(name, 0) + 1
            return op(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in ("rms_norm", "rotary", "silu_mul"):
        counted(name)
    return seen


# ---- models of all families


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_model_computes_the_same(family: str, dtype: torch.dtype, device: str, calls: dict[str, int]) -> None:
    model = build(family).to(device, dtype)
    layers = FusedLayers(model, probe(model))
    expected = logits(model)
    assert calls == {}
    with layers.active():
        found = logits(model)
    norms = {"qwen3_vl": 3 * 4 + 1, "gemma3": 3 * 6 + 1}.get(family, 3 * 2 + 1)
    silu = {} if family == "gemma3" else {"silu_mul": 3}  # Gemma's is a GELU
    assert calls == {"rms_norm": norms, "rotary": 3, **silu}
    names = " ".join(layers.fused)
    assert "RMSNorm [32]" in names and "apply_rotary_pos_emb" in names
    assert layers.left.keys() == ({"Gemma3MLP"} if family == "gemma3" else set())
    unit = torch.finfo(dtype).eps
    assert (found - expected).abs().max() <= 20 * unit * expected.abs().max()
    if dtype == torch.float32:
        assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", CONFIGS)
def test_interpreted_kernels_are_taken(family: str, dtype: torch.dtype) -> None:
    model = build(family).to(dtype)
    shape, expected = probe(model), logits(model)
    layers = FusedLayers(model, shape, backend="triton")
    assert layers.fused == FusedLayers(model, shape, backend="reference").fused
    with layers.active():
        found = logits(model)
    assert (found - expected).abs().max() <= 20 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="already in the interpreter")
def test_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def state_of(model: nn.Module) -> list[object]:
    scopes = [sys.modules[type(part).__module__] for part in model.modules() if "transformers" in type(part).__module__]
    functions = [getattr(scope, "apply_rotary_pos_emb", None) for scope in scopes]
    return [*functions, *(dict(vars(part)) for part in model.modules())]


def test_outside_nothing_is_changed() -> None:
    model = build("qwen2_5_vl")
    before = state_of(model)
    layers = FusedLayers(model, probe(model))
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="boom"), layers.active():
        assert state_of(model) != before
        with layers.active():  # the inner one finds all taken, and leaves it so
            pass
        assert state_of(model) != before
        raise RuntimeError("boom")
    assert state_of(model) == before


def test_a_gradient_goes_through_the_familys_code(calls: dict[str, int]) -> None:
    model = build("llava")
    layers = FusedLayers(model, probe(model))
    tokens = torch.arange(10, 22).view(3, 4)
    with layers.active():
        model(input_ids=tokens, use_cache=False).logits.sum().backward()
    assert calls == {} and all(p.grad is not None for p in model.get_decoder().layers.parameters())


def test_hooks_run(calls: dict[str, int]) -> None:
    model = build("llava")
    shape = probe(model)
    layer = model.get_decoder().layers[0]
    seen = []
    layer.input_layernorm.register_forward_hook(lambda part, args, output: seen.append("norm") or output * 2)
    layer.mlp.gate_proj.register_forward_hook(lambda part, args, output: seen.append("gate") or output * 2)
    layer.mlp.act_fn.register_forward_hook(lambda part, args, output: seen.append("act") or output * 2)
    layers = FusedLayers(model, shape)
    assert not seen  # the proofs do not touch the model
    expected = logits(model)
    assert seen == ["norm", "gate", "act"]
    with layers.active():
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert seen == 2 * ["norm", "gate", "act"]
    assert calls["rms_norm"] == 7 and calls["silu_mul"] == 2  # where the activation has a hook, it runs


def test_an_override_of_another_stays(calls: dict[str, int]) -> None:
    model = build("llava")
    norm = model.get_decoder().norm
    shape = probe(model)
    norm.forward = lambda x: x * 0
    layers = FusedLayers(model, shape)
    with layers.active():
        assert (logits(model) == 0).all()
    assert (logits(model) == 0).all() and layers.left["LlamaRMSNorm [32]"] == "another has replaced its forward"
    assert calls["rms_norm"] == 6 and "LlamaRMSNorm [32]" in layers.fused


# ---- what is proven, and what is refused


class Norm(nn.Module):
    def __init__(self, dim: int = 48, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.variance_epsilon = eps

    def normed(self, x):
        return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class LlamaRMSNorm(Norm):
    def forward(self, x):
        return self.weight * self.normed(x).to(x.dtype)


class LateRMSNorm(Norm):
    def forward(self, x):
        return (self.weight.float() * self.normed(x)).to(x.dtype)


class OffsetRMSNorm(Norm):
    def forward(self, x):
        return (self.normed(x) * (1.0 + self.weight.float())).to(x.dtype)


class OtherEpsRMSNorm(Norm):
    def forward(self, x):
        return self.weight * (x.float() / (x.float().pow(2).mean(-1, keepdim=True).sqrt() + 1e-6)).to(x.dtype)


class MeanRMSNorm(Norm):
    def forward(self, x):
        return self.weight * self.normed(x - x.mean(-1, keepdim=True)).to(x.dtype)


class AbsoluteRMSNorm(Norm):
    def forward(self, x):
        return self.weight.abs() * self.normed(x).to(x.dtype) * 1.003


class GatedRMSNorm(Norm):
    def forward(self, x, gate):
        return self.weight * self.normed(x).to(x.dtype) * gate


class BiasRMSNorm(LlamaRMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(48))


def taken(part: nn.Module, dtype: torch.dtype = torch.float32) -> FusedLayers:
    shape = KVShape(layers=1, kv_heads=2, head_dim=8, dtype=dtype, device=torch.device("cpu"))
    return FusedLayers(nn.Sequential(part).to(dtype), shape)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [LlamaRMSNorm, LateRMSNorm, OffsetRMSNorm, lambda: nn.RMSNorm(48, eps=1e-5)])
def test_norms_that_are_taken(norm, dtype: torch.dtype) -> None:
    part = norm()
    nn.init.normal_(part.weight)
    layers = taken(part, dtype)
    x = torch.randn(6, 1, 48).to(dtype)
    with torch.no_grad():
        expected = part(x)
        with layers.active():
            assert "forward" in vars(part)
            torch.testing.assert_close(part(x), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert len(layers.fused) == 1 and not layers.left


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [OtherEpsRMSNorm, MeanRMSNorm, AbsoluteRMSNorm, GatedRMSNorm, BiasRMSNorm])
def test_norms_that_are_left(norm, dtype: torch.dtype) -> None:
    part = norm()
    layers = taken(part, dtype)
    assert not layers.fused and len(layers.left) == 1
    with layers.active():
        assert "forward" not in vars(part)


class GatedMLP(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(12, 20), nn.Linear(12, 20)
        self.down_proj = nn.Linear(20, 12)
        self.act_fn = act or nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class SwappedMLP(GatedMLP):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class ClampedMLP(GatedMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * self.up_proj(x))


class ScaledMLP(GatedMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 1.002


class DroppingMLP(GatedMLP):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return self.dropout(super().forward(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mlps(dtype: torch.dtype) -> None:
    part = GatedMLP()
    layers = taken(part, dtype)
    x = torch.randn(6, 1, 12).to(dtype)
    with torch.no_grad():
        expected = part(x)
        with layers.active():
            torch.testing.assert_close(part(x), expected)
    assert layers.fused == ["GatedMLP"]
    for other in (SwappedMLP(), ClampedMLP(), ScaledMLP(), DroppingMLP(), GatedMLP(nn.GELU()), GatedMLP(nn.PReLU())):
        layers = taken(other, dtype)
        assert not layers.fused and len(layers.left) == 1, type(other)


def halves(q, k, cos, sin, unsqueeze_dim=1):
    def rotate(x):
        low, high = x.chunk(2, -1)
        return x * cos.unsqueeze(unsqueeze_dim) + torch.cat((-high, low), -1) * sin.unsqueeze(unsqueeze_dim)

    return rotate(q), rotate(k)


def first_half_only(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = (torch.cat((x[..., : x.shape[-1] // 2],) * 2, -1) for x in (cos, sin))
    return halves(q, k, cos, sin, unsqueeze_dim)


def interleaved(q, k, cos, sin, unsqueeze_dim=1):
    def rotate(x):
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * cos.unsqueeze(unsqueeze_dim) + turned * sin.unsqueeze(unsqueeze_dim)

    return rotate(q), rotate(k)


def backwards(q, k, cos, sin, unsqueeze_dim=1):
    return halves(q, k, cos, -sin, unsqueeze_dim)


def one_at_a_time(x, cos, sin, unsqueeze_dim=1):
    return halves(x, x, cos, sin, unsqueeze_dim)[0]


apply_rotary_pos_emb = halves


class Attention(nn.Module):
    def forward(self, q, k, cos, sin, **kwargs):
        return apply_rotary_pos_emb(q, k, cos, sin, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_functions(dtype: torch.dtype, monkeypatch, calls: dict[str, int]) -> None:
    attention = Attention()
    layers = taken(attention, dtype)
    assert layers.fused == ["test_fused.apply_rotary_pos_emb"] and not layers.left
    q, k = torch.randn(3, 4, 1, 8).to(dtype), torch.randn(3, 2, 1, 8).to(dtype)
    cos, sin = torch.randn(3, 1, 8).to(dtype), torch.randn(3, 1, 8).to(dtype)
    with torch.no_grad(), layers.active():
        for found, wanted in zip(attention(q, k, cos, sin), halves(q, k, cos, sin)):
            assert torch.equal(found, wanted)
        assert calls == {"rotary": 1}
        # What the proof did not see goes to the family's code.
        attention(q, k, cos[:1], sin[:1])
        attention(q, k, cos.double(), sin.double())
        attention(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
        assert calls == {"rotary": 1}
    assert apply_rotary_pos_emb is halves
    for other in (first_half_only, interleaved, backwards, one_at_a_time):
        monkeypatch.setitem(globals(), "apply_rotary_pos_emb", other)
        layers = taken(attention, dtype)
        assert not layers.fused and layers.left.keys() == {"test_fused.apply_rotary_pos_emb"}
        with layers.active():
            assert apply_rotary_pos_emb is other


def test_reasons_are_told() -> None:
    assert taken(BiasRMSNorm()).left == {"BiasRMSNorm [48]": "it has more than a weight, or another kind of weight"}
    assert "does not run by itself: TypeError" in taken(GatedRMSNorm()).left["GatedRMSNorm [48]"]
    reason = taken(MeanRMSNorm()).left["MeanRMSNorm [48]"]
    assert "RMS normalisation is" in reason and math.isfinite(float(reason.split()[3]))
