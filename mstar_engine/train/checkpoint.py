"""Checkpoints of a run: policy weights as a Hugging Face directory, optimizer state as safetensors, counters as JSON.

A checkpoint gets its final name only when every file of it is on disk; a half-written one keeps a temporary name and is
removed by the next save. Nothing in it is read with pickle (torch's DCP is avoided for that reason: its metadata file
is one). Optimizer tensors are keyed by parameter name, so they do not depend on how many processes wrote them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, ProcessorMixin

from mstar_engine.models.loading import save_model
from mstar_engine.train.trainer import Trainer

OPTIMIZER, STATE = "optimizer.safetensors", "trainer_state.json"
MASTER = "master"


def save_checkpoint(
    path: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    tensors: dict[str, torch.Tensor] | None = None,
    state: dict[str, Any] | None = None,
    files: dict[str, dict[str, torch.Tensor]] | None = None,
    save: Callable[[PreTrainedModel, ProcessorMixin, Path], None] = save_model,
) -> None:
    """Write a checkpoint directory atomically: `tensors` the optimizer's state by name, `state` JSON-ready counters.

    `files` are further safetensors files beside the weights, by name. `save` writes what there is of the model.
    """
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save(model, processor, part)
        beside = {} if tensors is None else {OPTIMIZER: tensors}
        for name, held in (beside | (files or {})).items():
            save_file({key: value.detach().cpu().contiguous() for key, value in held.items()}, part / name)
        (part / STATE).write_text(json.dumps(state or {}, indent=1))
        for file in part.rglob("*"):
            _sync(file)
        old = path.with_name(path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # a full disk reaches us as either
        shutil.rmtree(part, ignore_errors=True)
        number = getattr(error, "errno", None) or errno.EIO
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(number, f"checkpoint not written ({reason}); earlier ones are intact", str(path)) from error


def load_trainer_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer tensors (empty when none were saved) and counters of a checkpoint directory."""
    if not (path / STATE).is_file():
        raise ValueError(f"checkpoint {path}: {STATE} is missing; this is no checkpoint of a run")
    optimizer = path / OPTIMIZER
    try:
        tensors = load_file(optimizer) if optimizer.is_file() else {}
        return tensors, json.loads((path / STATE).read_text())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error}); remove it to go on from the one before") from error


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Copy the weights of a checkpoint into `model`'s own parameters (an optimizer that holds them stays valid)."""
    try:
        loaded = type(model).from_pretrained(path, dtype=model.dtype, use_safetensors=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error}); remove it to go on from the one before") from error
    model.load_state_dict(loaded.state_dict())


def trainer_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `<parameter name>/<moment>` tensors, and master weights as `<parameter name>/master`."""
    found = {}
    for name, parameter in trainer.trained().items():
        updated = trainer.updated(parameter)
        found |= {f"{name}/{key}": value for key, value in trainer.optimizer.state.get(updated, {}).items()}
        if updated is not parameter:
            found[f"{name}/{MASTER}"] = updated
    return found


def restore_trainer(trainer: Trainer, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Put saved moments, master weights, step count and position inside the epoch back.

    Master weights that were not saved (an older checkpoint, or one of another precision) start from the parameters,
    which must be the checkpoint's by now; saved ones that this trainer has no use for are left. ValueError for a
    parameter the model lacks.
    """
    parameters = trainer.trained()
    trainer.optimizer.state.clear()
    masters = {}
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        if name not in parameters:
            raise ValueError(f"checkpoint: optimizer state for {name!r}, which the model does not have")
        updated = trainer.updated(parameters[name])
        if moment == MASTER:
            masters[name] = value
            continue
        # The step count stays where the optimizer keeps it; moments live with their parameter.
        value = value if moment == "step" and updated.device.type == "cpu" else value.to(updated.device)
        trainer.optimizer.state[updated][moment] = value
    if trainer.masters is not None:
        trainer.masters.restore([masters.get(name) for name in parameters])
    trainer.resume_at(state["global_step"], state["cursor"])


def recover(path: Path) -> None:
    """Finish a save that a crash cut between its two renames: put the previous checkpoint back if none has the name."""
    old = path.with_name(path.name + ".old")
    if old.exists() and not path.exists():
        os.replace(old, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
