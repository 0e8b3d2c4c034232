"""Vision towers that attend by boundaries: the same features, and towers that are afterwards as before."""

import pytest
import torch
import torch.nn.functional as F
from families import CONFIGS, build, prompt
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mstar_engine.models.image_attention import NAME, boundary_configs, image_configs, packed_images
from mstar_engine.models.image_batches import stack_inputs

CPU = torch.device("cpu")
WITH_BOUNDARIES = ("qwen2_5_vl", "qwen3_vl")
on_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def logits(model: torch.nn.Module, family: str, device: torch.device) -> torch.Tensor:
    prompts = [prompt(family, 9, seed=seed, image=True) for seed in (1, 2)]
    with torch.no_grad():
        return model(**stack_inputs(prompts, device)).logits


@pytest.mark.parametrize("family", CONFIGS)
def test_features_are_those_of_a_call_a_window(family: str) -> None:
    torch.manual_seed(0)
    model = build(family).eval()
    expected = logits(model, family, CPU)
    configs = boundary_configs(model)
    assert (len(configs) == 1) == (family in WITH_BOUNDARIES)
    with packed_images(configs):
        assert all(config._attn_implementation.startswith("mstar_flash") for config in configs)
        torch.testing.assert_close(logits(model, family, CPU), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model, family, CPU), expected)


def test_groups_of_query_heads_share_their_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    ends = torch.tensor([0, 4, 9])
    found, _ = ALL_ATTENTION_FUNCTIONS[NAME](torch.nn.Module(), q, k, v, None, cu_seq_lens_q=ends, max_length_q=5)
    mask = torch.block_diag(torch.ones(4, 4), torch.ones(5, 5)).bool()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_on_the_cpu_towers_are_left_alone() -> None:
    assert image_configs(build("qwen2_5_vl")) == []


@pytest.mark.parametrize("family", [pytest.param(name, marks=on_cuda) for name in WITH_BOUNDARIES])
def test_the_kernel_on_a_device(family: str) -> None:
    torch.manual_seed(0)
    model = build(family).eval().to("cuda", torch.bfloat16)
    exact = logits(model.float(), family, model.device)
    model.bfloat16()
    usual = logits(model, family, model.device)
    configs = image_configs(model)
    assert len(configs) == 1
    with packed_images(configs):
        found = logits(model, family, model.device)
    assert (found - exact).norm() <= 2 * (usual - exact).norm() + 1e-3 * exact.norm()
