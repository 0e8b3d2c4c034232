"""Export of a trained model under the names that its source checkpoint has, and no others.

Transformers drops tied weights, renames what it loaded under older names, and does not keep tensors of which a model
makes nothing. Whoever reads the source (a server, another version) expects all of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

EXTRA = "model-source.safetensors"
"""What the source has beyond the model, where it is not the only file."""
INDEX = "model.safetensors.index.json"

log = logging.getLogger(__name__)


def weight_files(source: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint directory, or of a hub name that is in the local cache."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(source), allow_patterns=["*.safetensors*"], local_files_only=True))
    index = folder / INDEX
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return [folder / "model.safetensors"]


def tensors_of(source: str | Path) -> dict[str, tuple[Path, torch.dtype]]:
    """File and dtype of every tensor of a checkpoint, by name; no tensor is read."""
    found = {}
    for path in weight_files(source):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                found[name] = (path, _DTYPES.get(file.get_slice(name).get_dtype(), torch.float32))
    return found


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES |= {"BOOL": torch.bool}
_FORMAT = {"format": "pt"}


def match_source(path: Path, source: str | Path, *, dtypes: bool) -> None:
    """Bring a saved model at `path` to the set of keys of its source, and with `dtypes` to the types of its tensors.

    A tensor that transformers saved under another name gets the source's. A key that the model did not save is a tied
    weight's second name where the source holds the same matrix twice, and else the source's own tensor. A key that the
    source lacks stays, and the log names it; it also says when the source is no longer there, and the model stays what
    transformers saved.
    """
    try:
        theirs = tensors_of(source)
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("export: %s cannot be read to compare its tensors' names (%s)", source, error)
        return
    if names := _renamed(tensors_of(path), theirs):
        _rename(path, names)
    ours = tensors_of(path)
    extra, missing = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if extra:
        log.warning("export: %d tensors that %s does not have, such as %s", len(extra), source, extra[0])
    if dtypes:
        _cast(path, {name: dtype for name, (_, dtype) in theirs.items()})
        _write_dtype(path, source)
    if missing:
        added = {name: _tensor_for(name, theirs, ours) for name in missing}
        if dtypes:
            added = {name: value.to(theirs[name][1]) for name, value in added.items()}
        _add(path, added)


def _renamed(
    ours: Mapping[str, tuple[Path, torch.dtype]], theirs: Mapping[str, tuple[Path, torch.dtype]]
) -> dict[str, str]:
    """Of the names that only we have, which are which of those that only the source has: of one shape, and alike from
    the end on for longer than any other."""
    missing = [(name.split("."), _shape(name, theirs)) for name in theirs.keys() - ours.keys()]
    found: dict[str, str] = {}
    for name in sorted(ours.keys() - theirs.keys()):
        parts, shape = name.split("."), _shape(name, ours)
        scores = sorted(((_alike(parts, other), ".".join(other)) for other, size in missing if size == shape))
        if scores and scores[-1][0] > 0 and (len(scores) == 1 or scores[-2][0] < scores[-1][0]):
            found[name] = scores[-1][1]
    taken = list(found.values())
    return {name: other for name, other in found.items() if taken.count(other) == 1}


def _alike(one: list[str], other: list[str]) -> int:
    """How many of the last parts of two names are the same."""
    count = 0
    for a, b in zip(reversed(one), reversed(other)):
        if a != b:
            break
        count += 1
    return count


def _rename(path: Path, names: Mapping[str, str]) -> None:
    """Rewrite the files, and the index, that hold a tensor of another name than is wanted."""
    for file in weight_files(path):
        tensors = load_file(file)
        if tensors.keys() & names.keys():
            save_file({names.get(name, name): value for name, value in tensors.items()}, file, metadata=_FORMAT)
    if (path / INDEX).is_file():
        listed = json.loads((path / INDEX).read_text())
        listed["weight_map"] = {names.get(name, name): file for name, file in listed["weight_map"].items()}
        (path / INDEX).write_text(json.dumps(listed, indent=2, sort_keys=True) + "\n")


def _cast(path: Path, dtypes: Mapping[str, torch.dtype]) -> None:
    """Rewrite the files that hold a tensor of another type than is wanted."""
    for file in weight_files(path):
        tensors = load_file(file)
        cast = {name: value.to(dtypes.get(name, value.dtype)) for name, value in tensors.items()}
        if any(cast[name] is not tensors[name] for name in tensors):
            save_file(cast, file, metadata=_FORMAT)


def _write_dtype(path: Path, source: str | Path) -> None:
    """The type that config.json names, as the source's config.json does."""
    given = Path(source) / "config.json"
    if not given.is_file():
        return
    theirs, config = json.loads(given.read_text()), json.loads((path / "config.json").read_text())
    dtype = theirs.get("dtype", theirs.get("torch_dtype"))
    if dtype is not None and config.get("dtype") != dtype:
        (path / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=2) + "\n")


def _tensor_for(
    name: str, theirs: Mapping[str, tuple[Path, torch.dtype]], ours: Mapping[str, tuple[Path, torch.dtype]]
) -> torch.Tensor:
    own = _read(name, theirs)
    if own.ndim == 2:
        for other, (_, dtype) in theirs.items():
            alike = other in ours and dtype == own.dtype and _shape(other, theirs) == list(own.shape)
            if alike and torch.equal(_read(other, theirs), own):
                return _read(other, ours)
    return own


def _shape(name: str, tensors: Mapping[str, tuple[Path, torch.dtype]]) -> list[int]:
    with safe_open(tensors[name][0], "pt") as file:
        return file.get_slice(name).get_shape()


def _read(name: str, tensors: Mapping[str, tuple[Path, torch.dtype]]) -> torch.Tensor:
    with safe_open(tensors[name][0], "pt") as file:
        return file.get_tensor(name)


def _add(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put further tensors into a saved model: into its one file, or beside its several."""
    index = path / INDEX
    if not index.is_file():
        (file,) = weight_files(path)
        save_file({**load_file(file), **tensors}, file, metadata=_FORMAT)
        return
    save_file(tensors, path / EXTRA, metadata=_FORMAT)
    listed = json.loads(index.read_text())
    listed["weight_map"] |= dict.fromkeys(tensors, EXTRA)
    size = sum(value.nbytes for value in tensors.values())
    listed["metadata"]["total_size"] = listed["metadata"].get("total_size", 0) + size
    index.write_text(json.dumps(listed, indent=2, sort_keys=True) + "\n")
