"""Branches below a prompt: the hidden states of one forward a response, with every token computed once."""

import numpy as np
import pytest
import torch

from mstar_engine.models.compatibility import forget_rope_deltas
from mstar_engine.rollout.branches import BranchRunner, Trunk
from tests.rollout.families import CONFIGS, VOCABULARY, build, prompt


def trunks_of(family: str) -> list[Trunk]:
    """Prompts of several lengths, with and without an image; branches of one token, of many, and none at all."""
    rng = np.random.default_rng(3)
    shapes = [(5, True, (1, 7, 13)), (5, True, (4,)), (9, False, (3, 3, 20, 1)), (12, True, ()), (30, True, (2, 9))]
    return [
        Trunk(prompt(family, length, length, image), [rng.integers(10, VOCABULARY, n).astype(np.int32) for n in counts])
        for length, image, counts in shapes
    ]


@torch.no_grad()
def alone(model: torch.nn.Module, trunk: Trunk, branch: np.ndarray) -> torch.Tensor:
    """Hidden states of a branch, [tokens, D], from one plain forward over prompt and branch."""
    given = trunk.prompt
    ids = torch.cat([given.input_ids, torch.from_numpy(branch).long()])[None]
    zeros = torch.zeros(len(branch), dtype=torch.int64)
    tokens = {name: torch.cat([value, zeros.to(value.dtype)])[None] for name, value in given.token_inputs.items()}
    forget_rope_deltas(model)
    output = model.base_model(input_ids=ids, use_cache=False, **given.inputs, **tokens)
    return output.last_hidden_state[0, len(given.input_ids) :]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("max_tokens", [1, 30, 8192])
def test_states_equal_one_forward_a_response(family: str, max_tokens: int) -> None:
    """fp32, to 1e-5; however the trunks are packed. Counted: each prompt once, each branch once."""
    model, trunks = build(family), trunks_of(family)
    runner = BranchRunner(model, max_tokens=max_tokens)
    seen = []
    for which, states in runner.run(trunks):
        for index, begins in zip(which, states.begins, strict=True):
            seen.append(index)
            for branch, begin in zip(trunks[index].branches, begins, strict=True):
                found = states.hidden[begin : begin + len(branch)]
                torch.testing.assert_close(found, alone(model, trunks[index], branch), atol=1e-5, rtol=1e-5)
    assert seen == list(range(len(trunks)))
    assert runner.stats.prompt_tokens == sum(len(trunk.prompt.input_ids) for trunk in trunks if trunk.branches)
    assert runner.stats.branch_tokens == sum(trunk.tokens for trunk in trunks)


def test_the_model_is_left_as_it_was() -> None:
    """Training mode, attention and cached rotary offsets are the caller's."""
    model = build("qwen2_5_vl").train()
    before = model.config.get_text_config(decoder=True)._attn_implementation
    list(BranchRunner(model).run(trunks_of("qwen2_5_vl")))
    assert model.training
    assert model.config.get_text_config(decoder=True)._attn_implementation == before
    assert all(getattr(module, "rope_deltas", None) is None for module in model.modules())


def test_an_empty_branch_is_refused_by_place() -> None:
    """Nothing runs before."""
    given = prompt("llava", 5, 0)
    trunks = [Trunk(given, [np.array([11], np.int32)]), Trunk(given, [np.array([11], np.int32), np.empty(0, np.int32)])]
    runner = BranchRunner(build("llava"))
    with pytest.raises(ValueError, match="trunk 1, branch 1: no token"):
        next(runner.run(trunks))
    assert runner.stats.prompt_tokens == 0


def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    runner, trunks = BranchRunner(build("llava").train()), trunks_of("llava")[:2]
    monkeypatch.setattr(runner, "_prefill", full)
    tokens = sum(len(trunk.prompt.input_ids) for trunk in trunks)
    with pytest.raises(ValueError, match=rf"2 prompts of {tokens} tokens together, and 25 tokens .*lower max_tokens"):
        next(runner.run(trunks))
    assert runner.model.training
