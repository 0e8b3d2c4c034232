"""Rows of Hugging Face data sets: folders that `save_to_disk` wrote, and names on the hub (or in its cache).

The library `datasets` is optional. Images are not decoded here: rows hold their bytes and paths. With HF_HUB_OFFLINE=1
the library reads its cache only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mstar_engine.data.json_rows import Rows


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` wrote."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def hub_rows(path: Path | str, split: str) -> Rows:
    """The rows of a saved folder or of a hub name, "owner/name" or "owner/name:configuration", numbered from 1.

    ValueError: without the library, an unknown name or split, or more than one split and none named.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{path}: reading Hugging Face data sets needs `pip install datasets`") from None
    try:
        if isinstance(path, Path):
            data = datasets.load_from_disk(str(path))
        else:
            name, _, configuration = path.partition(":")
            data = datasets.load_dataset(name, configuration or None, split=split or None)
    except Exception as error:  # of many kinds: the library's, the hub's, Arrow's
        raise ValueError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from None
    if isinstance(data, dict):
        if not split and len(data) == 1:
            split = next(iter(data))
        if split not in data:
            raise ValueError(f"{path}: split {split!r}; allowed: {', '.join(data)}")
        data = data[split]
    return enumerate(map(dict, _undecoded(data, datasets)), 1)


def _undecoded(data: Any, datasets: Any) -> Any:
    """The data set with images left as they are stored."""
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            kind = type(feature)
            data = data.cast_column(name, kind(datasets.Image(decode=False)))
    return data
