"""Loading and saving checkpoints as ordinary Hugging Face directories."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_config_of(path: str | Path, key: str = "model.model_name_or_path") -> PretrainedConfig:
    """The config of a checkpoint directory (or hub name); no weights are read. ValueError names `key` and the path."""
    local = Path(path)
    if local.exists() and not (local / "config.json").is_file():
        raise ValueError(f"{key}={path}: no config.json there; give a Hugging Face checkpoint directory")
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"{key}={path}: no checkpoint there ({first_line})") from error


def load_model(
    path: str | Path, *, dtype: str = "float32", attn_implementation: str = "sdpa", device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model and processor of a checkpoint directory (or hub name). Weights are read from safetensors only.

    Raises ValueError naming the path when the directory is no such checkpoint, or the dtype when it is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
    load_config_of(path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=DTYPES[dtype], attn_implementation=attn_implementation, use_safetensors=True
        )
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"model.model_name_or_path={path}: cannot be loaded ({first_line})") from error
    return model.to(device), processor


def save_model(model: PreTrainedModel, processor: ProcessorMixin, path: str | Path) -> None:
    """Write weights (safetensors), config, tokenizer, processor and chat template to `path`."""
    model.save_pretrained(path)
    processor.save_pretrained(path)
