"""Training of adapters: nothing else moves, checkpointed activations and bfloat16 work, a resumed run is the same."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from mstar_engine.config_parse import load_config
from mstar_engine.data.digits import demonstrations
from mstar_engine.evolve.policy import ADAPTERS, Policy
from mstar_engine.models.export import tensors_of
from mstar_engine.models.loading import load_model, save_model
from mstar_engine.models.lora import LoraMerge, add_lora, lora_layers
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.train.collate import imitate
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer

pytest.importorskip("peft")
torch.set_num_threads(1)
MODEL, PROCESSOR = build_tiny(seed=1)
ENCODER = PromptEncoder(PROCESSOR)
EXAMPLES = [imitate(problem, ENCODER) for problem in demonstrations(12)]
SCHEDULE = Schedule(peak=1e-3)


def adapted(dtype: torch.dtype = torch.float32, **options) -> PreTrainedModel:
    model = deepcopy(MODEL).to(dtype)
    add_lora(model, **{"rank": 4} | options)
    return model


def trainer(model: PreTrainedModel, **options) -> Trainer:
    return Trainer(model, ENCODER, SCHEDULE, **options)


def split(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Copies of the frozen tensors and of the adapters."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return {n: v for n, v in state.items() if ".lora_" not in n}, {n: v for n, v in state.items() if ".lora_" in n}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float32, False), (torch.bfloat16, True)])
def test_only_adapters_are_trained(dtype: torch.dtype, bf16: bool) -> None:
    model = adapted(dtype)
    frozen, before = split(model)
    one = trainer(model, bf16=bf16)
    losses = [one.step(EXAMPLES[:6]).loss for _ in range(6)]
    after, learned = split(model)
    assert losses[-1] < losses[0] - 0.3 and equal(frozen, after)
    assert all(not torch.equal(before[name], learned[name]) for name in before)
    assert set(one.trained()) == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(one.optimizer.state) == len(learned) and all(p.grad is None for p in model.parameters())
    kept = sum(value.numel() for state in one.optimizer.state.values() for value in state.values() if value.ndim)
    assert kept == 2 * sum(value.numel() for value in learned.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_give_the_same_gradients(dropout: float) -> None:
    """No input of the frozen layers has a gradient of its own."""
    plain, spared = (trainer(adapted(dropout=dropout), gradient_checkpointing=on) for on in (False, True))
    for _ in range(2):
        a, b = plain.step(EXAMPLES[:4]), spared.step(EXAMPLES[:4])
        assert a.loss == pytest.approx(b.loss, rel=1e-6) and a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
        assert a.grad_norm > 0
    for x, y in zip(plain.trained().values(), spared.trained().values()):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_dropout_is_drawn_by_the_step_alone() -> None:
    one, other = (trainer(adapted(dropout=0.5)) for _ in range(2))
    state = torch.get_rng_state()
    first = one.step(EXAMPLES[:4])  # what the adapters add is zero at first: dropout shows in the gradient
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    torch.rand(7)
    assert other.step(EXAMPLES[:4]) == first
    assert trainer(adapted()).step(EXAMPLES[:4]).grad_norm != first.grad_norm
    later = trainer(adapted(dropout=0.5))
    later.global_step = 1
    assert later.step(EXAMPLES[:4]).grad_norm != first.grad_norm


# ---- checkpoints


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_model(MODEL, PROCESSOR, tmp_path / "base")
    return tmp_path / "base"


def policy(path: Path, *overrides: str) -> Policy:
    asked = ["model.device=cpu", "model.lora_r=4", "model.lora_dropout=0.2", *overrides]
    return Policy.load(path, load_config("smoke", asked), SCHEDULE)


def epoch(one: Policy, number: int) -> None:
    one.trainer.train_epoch(EXAMPLES, batch_size=4, seed=7, epoch=number)


@pytest.mark.parametrize("precision", [[], ["model.dtype=bfloat16", "train.bf16=true"]])
def test_a_resumed_policy_ends_with_the_same_bits(base: Path, precision: list[str]) -> None:
    straight, broken = policy(base, *precision), policy(base, *precision)
    for number in range(2):
        epoch(straight, number)
    epoch(broken, 0)
    saved = base.parent / "saved"
    broken.save(saved, note=3)
    assert {file.name for file in saved.glob("*.safetensors")} == {"adapter_model.safetensors", "optimizer.safetensors"}
    small = (saved / "adapter_model.safetensors").stat().st_size
    assert small < (base / "model.safetensors").stat().st_size / 8
    for start in (base, saved):
        resumed = policy(start, *precision)
        assert resumed.restore(saved)["note"] == 3
        epoch(resumed, 1)
        assert equal(resumed.model.state_dict(), straight.model.state_dict())
        assert Path(resumed.source).resolve() == base
        mine, theirs = resumed.trainer.state_dict(), straight.trainer.state_dict()
        for index, moments in theirs["optimizer"]["state"].items():
            assert equal(mine["optimizer"]["state"][index], moments)


def test_a_moved_run_finds_the_base_beside_it(base: Path, tmp_path: Path) -> None:
    policy(base).save(tmp_path / "saved")
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "saved"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert Path(policy(tmp_path / "elsewhere" / "saved").source).resolve() == tmp_path / "elsewhere" / "base"


@pytest.mark.parametrize("precision", [[], ["model.dtype=bfloat16", "train.bf16=true"]])
def test_an_export_is_the_merged_model_with_the_keys_and_types_of_its_source(base: Path, precision: list[str]) -> None:
    one = policy(base, *precision)
    epoch(one, 0)
    frozen, _ = split(one.model)
    out = base.parent / "final"
    one.save(out, export=True)
    assert equal(split(one.model)[0], frozen)
    theirs, ours = tensors_of(base), tensors_of(out)
    assert {k: v[1] for k, v in ours.items()} == {k: v[1] for k, v in theirs.items()}
    plain, processor = load_model(out, dtype=str(one.model.dtype).removeprefix("torch."))
    assert type(processor) is type(PROCESSOR) and not lora_layers(plain)
    ids = ENCODER.encode(EXAMPLES[0].problem)
    one.model.eval()
    given = {name: value.to(one.model.dtype) for name, value in ids.inputs.items()}
    with torch.no_grad(), LoraMerge(one.model).active():
        wanted = one.model(input_ids=ids.input_ids[None], **given).logits
        found = plain(input_ids=ids.input_ids[None], **given).logits
    assert torch.equal(wanted, found)
    again = policy(out / ADAPTERS, *precision)
    assert equal(again.model.state_dict(), one.model.state_dict())


def test_without_adapters_an_export_has_the_keys_of_its_source(base: Path) -> None:
    held = load_file(base / "model.safetensors")
    one = Policy.load(base, load_config("smoke", ["model.device=cpu", "model.freeze_vision_tower=true"]), SCHEDULE)
    epoch(one, 0)
    one.save(base.parent / "final", export=True)
    out = load_file(base.parent / "final" / "model.safetensors")
    assert out.keys() == held.keys()
    same = {name for name in out if torch.equal(out[name], held[name])}
    assert same == {name for name in out if "vision_tower" in name}
    state = load_file(base.parent / "final" / "optimizer.safetensors")
    assert state and not any("vision_tower" in name for name in state)
