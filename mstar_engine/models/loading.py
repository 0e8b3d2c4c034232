"""Loading and saving checkpoints as ordinary Hugging Face directories."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from mstar_engine.models.image_library import processor_fault
from mstar_engine.models.lora import base_of, inject_saved, is_lora, merge_for_good
from mstar_engine.models.remote_code import own_class, refuse_code

log = logging.getLogger(__name__)
IMAGE_CLASSES = (AutoModelForImageTextToText, AutoModelForMultimodalLM)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OF_CONSTRUCTORS = (TypeError, AttributeError, KeyError, ZeroDivisionError)
"""What a family's class raises where a config is not one that it can be built from."""


def load_config_of(
    path: str | Path, key: str = "model.model_name_or_path", *, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The config of a checkpoint directory (or hub name); no weights are read. ValueError names `key` and the path, and
    the files where it is code that is not trusted."""
    local = Path(path)
    if local.exists() and not (local / "config.json").is_file():
        raise ValueError(f"{key}={path}: no config.json there; give a Hugging Face checkpoint directory")
    refuse_code(path, key, trust_remote_code)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"{key}={path}: no checkpoint there ({first_line})") from error


def device_of(asked: str) -> torch.device:
    """The device that model.device names: "cpu", "cuda" (ValueError where there is none), or "auto"."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device=cuda: torch sees no CUDA device; allowed: auto or cpu")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def attention_of(asked: str, config: PretrainedConfig, dtype: str, device: torch.device) -> str:
    """The attention that model.attn_implementation names, for a model of `config`, or what "auto" comes to.

    ValueError for flash_attention_2 where it cannot run, saying why.
    """
    if asked not in ("auto", "flash_attention_2"):
        return asked
    reason = _no_flash_attention(config, dtype, device)
    if asked == "flash_attention_2" and reason is not None:
        raise ValueError(f"model.attn_implementation=flash_attention_2: {reason}; allowed: auto, sdpa or eager")
    return "sdpa" if reason is not None else "flash_attention_2"


def _no_flash_attention(config: PretrainedConfig, dtype: str, device: torch.device) -> str | None:
    """Why flash-attn cannot serve a model, in words; None when it can."""
    if device.type != "cuda":
        return f"it needs CUDA, and the model is on {device.type}"
    if dtype == "float32":
        return "it needs half precision, and model.dtype is float32"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0 or newer"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    kind = class_of(config)
    if kind is not None and not kind._supports_flash_attn:
        return f"model family {config.model_type!r} does not support it"
    return None


def class_of(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The model class that a config is loaded as, if transformers has one."""
    mappings = (kind._model_mapping for kind in (*IMAGE_CLASSES, AutoModelForCausalLM))
    return next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)


def image_class(config: PretrainedConfig) -> type:
    """The auto class that loads an image-text-to-text model of a config: some families (Phi-4 multimodal) are listed
    among those of several modalities alone, and a checkpoint's own code may know others."""
    own = own_class(config, (*IMAGE_CLASSES, AutoModelForCausalLM, AutoModel))
    return (
        own
        if own is not None and class_of(config) is None
        else next((kind for kind in IMAGE_CLASSES if type(config) in kind._model_mapping), IMAGE_CLASSES[0])
    )


def load_model(
    path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model and processor of a checkpoint directory (or hub name). Weights are read from safetensors only. Code of
    the checkpoint is run only with `trust_remote_code`, and a warning then names its files.

    A directory of adapters is loaded as the checkpoint that they belong to, with them merged.

    Raises ValueError naming the path when the directory is no such checkpoint, and a tensor that it lacks or has in
    another shape; the dtype when it is unknown; the attention when it cannot run there (see `attention_of`).
    """
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
    device = torch.device(device)
    adapters = Path(path) if is_lora(path) else None
    path = path if adapters is None else base_of(adapters)
    config = load_config_of(path, trust_remote_code=trust_remote_code)
    attention = attention_of(attn_implementation, config, dtype, device)
    processor = load_processor(path, trust_remote_code=trust_remote_code)  # before weights are read for minutes
    try:
        model, told = with_attention(
            image_class(config),
            path,
            attention,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, SafetensorError, *OF_CONSTRUCTORS) as error:
        raise ValueError(f"model.model_name_or_path={path}: cannot be loaded ({_first_line(error)})") from error
    _refuse_incomplete(path, told)
    model = model.to(device)
    if adapters is not None:
        inject_saved(model, adapters)
        merge_for_good(model)
    return model, processor


def _first_line(error: Exception) -> str:
    """What an error says, in one line; of errors that are bare names, their kind too."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {line}" if isinstance(error, OF_CONSTRUCTORS) else line


def _refuse_incomplete(path: str | Path, told: Mapping[str, Collection[Any]]) -> None:
    """ValueError where transformers has filled weights with random numbers, by what it tells of loading."""
    if other := sorted(told["mismatched_keys"], key=str):
        name, found, wanted = other[0]
        raise ValueError(
            f"model.model_name_or_path={path}: {len(other)} tensors have other shapes than its config.json says, such "
            f"as {name}: {list(found)}, not {list(wanted)}"
        )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(
            f"model.model_name_or_path={path}: {len(missing)} tensors that its config.json asks for are not there, "
            f"such as {missing[0]}; allowed: a complete checkpoint"
        )


def with_attention(kind: type, path: str | Path, attention: str, **named: object) -> Any:
    """`kind.from_pretrained(path, **named)` with an attention. Some families have a part without sdpa (a tower with
    relative positions, Gemma 2's soft cap): with "sdpa" such parts run eagerly, and the log says so."""
    try:
        return kind.from_pretrained(path, attn_implementation=attention, **named)
    except ValueError as error:
        if attention != "sdpa" or "does not support an attention implementation" not in str(error):
            raise
        log.warning("model.attn_implementation=sdpa: %s runs eagerly, it has no other", str(error).partition(" ")[0])
    return kind.from_pretrained(path, **named)


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """The processor of a checkpoint directory (or hub name). ValueError naming the path when there is none."""
    try:
        return processor_of(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        fault = processor_fault(error)
        raise ValueError(f"model.model_name_or_path={path}: its processor cannot be loaded ({fault})") from error


def processor_of(path: str | Path, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """The processor of a checkpoint as transformers loads it, or its errors. Where the chat template is in the
    tokenizer's files alone, as in older checkpoints, the processor has it too."""
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(processor, "chat_template", None) is None:
        processor.chat_template = getattr(tokenizer, "chat_template", None)
    return processor


def blank_model(
    config: PretrainedConfig, dtype: str = "float32", *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The modules of a model without weights: what there is, by name and of which shape, before anything is read. It
    takes no memory, and `probe` can run it. A family without images is a text model. ValueError for a config that the
    family's class cannot be built from."""
    text = class_of(config) is not None and not any(type(config) in kind._model_mapping for kind in IMAGE_CLASSES)
    kind = AutoModelForCausalLM if text else image_class(config)
    try:
        with torch.device("meta"):
            return kind.from_config(config, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code).eval()
    except OF_CONSTRUCTORS as error:
        family, said = config.model_type, _first_line(error)
        raise ValueError(f"model family {family!r}: its class cannot be built from its config.json ({said})") from error


def save_model(model: PreTrainedModel, processor: ProcessorMixin, path: str | Path) -> None:
    """Write weights (safetensors), config, tokenizer, processor and chat template to `path`."""
    model.save_pretrained(path)
    processor.save_pretrained(path)
