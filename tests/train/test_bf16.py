"""bfloat16 training: small updates count, gradients sum in float32, and a checkpoint holds all of it."""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mstar_engine.data.digits import demonstrations
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.train.checkpoint import (
    load_trainer_state,
    load_weights,
    restore_trainer,
    save_checkpoint,
    trainer_tensors,
)
from mstar_engine.train.collate import imitate
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer

torch.set_num_threads(1)
MODEL, PROCESSOR = build_tiny(seed=1)
MODEL = MODEL.bfloat16()
ENCODER = PromptEncoder(PROCESSOR)
EXAMPLES = [imitate(problem, ENCODER) for problem in demonstrations(14)]


def trainer(dtype: torch.dtype = torch.bfloat16, rate: float = 1e-3, **options) -> Trainer:
    options = {"bf16": dtype == torch.bfloat16, **options}
    return Trainer(deepcopy(MODEL).to(dtype), ENCODER, Schedule(peak=rate), **options)


def everything(one: Trainer) -> dict[str, torch.Tensor]:
    """Parameters, moments and masters, by name."""
    state = {name: parameter.detach().clone() for name, parameter in one.model.named_parameters()}
    return state | {name: tensor.clone() for name, tensor in trainer_tensors(one).items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def test_parameters_are_the_masters_rounded() -> None:
    one = trainer()
    one.train_epoch(EXAMPLES, batch_size=4)
    assert all(group["params"][0].dtype == torch.float32 for group in one.optimizer.param_groups)
    for name, parameter in one.model.named_parameters():
        master = one.updated(parameter)
        assert parameter.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(parameter, master.bfloat16()), name
        assert parameter.grad is None and master.grad is None
        moments = one.optimizer.state[master]
        assert not moments or {moments[key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert any(not torch.equal(a, b) for a, b in zip(one.model.parameters(), MODEL.parameters()))


def test_tiny_updates_are_not_lost() -> None:
    """At a rate of 1e-6 masters move as float32 weights do, and parameters in the end with them; bare bfloat16 ones
    stay where they are, but for those near zero."""
    steps, rate = 20, 1e-6
    found = {
        "masters": trainer(rate=rate),
        "float32": trainer(torch.float32, rate),
        "bare": trainer(rate=rate, bf16=False),
    }
    moved = {}
    for name, one in found.items():
        for _ in range(steps):
            one.step(EXAMPLES[:4])
        ends = [one.updated(parameter).detach().float() for parameter in one.model.parameters()]
        moved[name] = torch.cat([(end - start.float()).flatten() for end, start in zip(ends, MODEL.parameters())])
    reached = moved["float32"].abs() > 0.5 * steps * rate  # those whose gradient keeps its sign
    assert reached.float().mean() > 0.2
    alike = moved["masters"][reached] / moved["float32"][reached]
    assert ((alike > 0.9) & (alike < 1.1)).float().mean() > 0.9
    large = reached & (torch.cat([p.detach().float().flatten() for p in MODEL.parameters()]).abs() > 0.01)
    assert large.float().mean() > 0.1
    assert not moved["bare"][large].any() and moved["masters"][large].all()


def test_gradients_sum_in_float32_over_micro_batches() -> None:
    """The masters' gradients are the sum of the bfloat16 gradients of each micro-batch, and no bfloat16 one is left."""
    one, seen = trainer(max_grad_norm=1e9), {}
    step = one.optimizer.step

    def keep(*arguments: object) -> None:
        for name, parameter in one.trained().items():
            assert parameter.grad is None
            if one.updated(parameter).grad is not None:
                seen[name] = one.updated(parameter).grad.clone()
        step(*arguments)

    one.optimizer.step = keep
    one.step(EXAMPLES[:6], max_examples=2)
    alone = deepcopy(MODEL).train()
    total, expected = one.objective.count(EXAMPLES[:6]), {}
    for first in range(0, 6, 2):
        (
            one.objective.loss(alone, EXAMPLES[first : first + 2], ENCODER, PROCESSOR.tokenizer.pad_token_id) / total
        ).backward()
        for name, parameter in alone.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0) + parameter.grad.float()
                parameter.grad = None
    assert seen.keys() == expected.keys() and all(torch.equal(seen[name], expected[name]) for name in seen)


def save(one: Trainer, path: Path) -> None:
    counters = {key: one.state_dict()[key] for key in ("global_step", "cursor")}
    save_checkpoint(path, one.model, PROCESSOR, tensors=trainer_tensors(one), state=counters)


def restored(path: Path, **options) -> Trainer:
    """A trainer of other weights, brought to where the checkpoint is."""
    one = Trainer(build_tiny(9)[0].bfloat16(), ENCODER, Schedule(peak=1e-3), bf16=True, **options)
    tensors, state = load_trainer_state(path)
    load_weights(one.model, path)
    restore_trainer(one, tensors, state)
    return one


@pytest.mark.parametrize("rate", [1e-3, 1e-6])
def test_a_resumed_run_is_the_uninterrupted_one(rate: float, tmp_path: Path) -> None:
    """Saved in the middle of an epoch: masters, moments and parameters end with the same bits."""
    straight = trainer(rate=rate)
    straight.train_epoch(EXAMPLES, batch_size=4, seed=7)
    broken = trainer(rate=rate)
    broken.train_epoch(
        EXAMPLES, batch_size=4, seed=7, progress=lambda s: s.step == 1 and save(broken, tmp_path / "here")
    )
    again = restored(tmp_path / "here")
    again.schedule = Schedule(peak=rate)
    again.train_epoch(EXAMPLES, batch_size=4, seed=7)
    assert again.global_step == straight.global_step == 4
    assert_equal(everything(again), everything(straight))
    assert f"{next(iter(straight.trained()))}/master" in everything(straight)


def test_the_state_dict_holds_masters() -> None:
    straight, again = trainer(rate=1e-6), trainer(rate=1e-6)
    for _ in range(3):
        straight.step(EXAMPLES[:4])
    again.model.load_state_dict(straight.model.state_dict())
    again.load_state_dict(deepcopy(straight.state_dict()))
    assert_equal(everything(again), everything(straight))


def test_a_checkpoint_without_masters_starts_them_from_the_weights(tmp_path: Path) -> None:
    one = trainer()
    one.train_epoch(EXAMPLES, batch_size=4)
    save(one, tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "optimizer.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("/master")}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "old" / "optimizer.safetensors")
    again = restored(tmp_path / "old")
    for (name, mine), theirs in zip(again.model.named_parameters(), one.model.parameters()):
        assert torch.equal(mine, theirs) and torch.equal(again.updated(mine), theirs.float()), name
    again.step(EXAMPLES[:4])


def test_an_exported_model_is_an_ordinary_directory_in_bfloat16(tmp_path: Path) -> None:
    one = trainer()
    one.step(EXAMPLES[:4])
    save(one, tmp_path / "export")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "export")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), one.model.parameters(), strict=True))
    assert len(AutoProcessor.from_pretrained(tmp_path / "export").tokenizer) == len(PROCESSOR.tokenizer)


def test_float32_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train.bf16=true: .*torch.float32; allowed: model.dtype=bfloat16"):
        trainer(torch.float32, bf16=True)
