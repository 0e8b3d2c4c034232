"""Process reward models on disk: ours and the common forms, as Hugging Face checkpoint directories.

One of ours is an ordinary checkpoint: config.json says under `process_reward` how steps are read, and a head that is
not part of the model lies beside the weights in `reward_head.safetensors`. Nothing is read with pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from mstar_engine.models.image_library import processor_fault
from mstar_engine.models.loading import (
    DTYPES,
    IMAGE_CLASSES,
    attention_of,
    class_of,
    image_class,
    load_config_of,
    processor_of,
    with_attention,
)
from mstar_engine.prompt_template import PLAIN
from mstar_engine.reward.forms import FORMS, PrmForm, form_named
from mstar_engine.reward.head import RewardHead
from mstar_engine.reward.layout import token_id
from mstar_engine.reward.prm import ProcessRewardModel

HEAD = "reward_head.safetensors"
KEY = "process_reward"


def load_prm(
    path: str | Path,
    *,
    form: str | None = None,
    policy_processor=None,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    **options: Any,
) -> ProcessRewardModel:
    """The process reward model of a checkpoint directory.

    `form` names a row of `forms.FORMS`; None reads it from the checkpoint (config.json of ours, a `score` or `v_head`
    head of the known ones). `policy_processor`: that of the policy whose responses will be scored. `options` go to
    ProcessRewardModel (`delimiter`, `max_steps`, `reduction`, `system` ...), over those of the checkpoint.
    `trust_remote_code`: run code that the checkpoint brings, as one fitted from such a policy does.

    Raises ValueError naming the path: no checkpoint, no such form, a head that is not there or of another width, label
    tokens that its tokenizer lacks, a tokenizer or image processor that differs from the policy's.
    """
    config = load_config_of(path, trust_remote_code=trust_remote_code)
    where = f"process reward model {path}"
    said = dict(getattr(config, KEY, None) or {})
    name = form or said.pop("form", None) or _guess(config, path, where)
    row = form_named(name, where)
    attention = attention_of(attn_implementation, config, dtype, torch.device(device))
    model, processor = _load(config, path, dtype, attention, where, trust_remote_code)
    if policy_processor is not None:
        refuse_other_processor(processor, policy_processor, where)
    head = build_head(row, model, processor, where, _head_tensors(path, row, where))
    kept = {key: said[key] for key in ("delimiter", "max_steps", "reduction", "system", "template") if key in said}
    prm = ProcessRewardModel(model.to(device), processor, head.to(device), row, **(kept | options))
    return prm


def description(form: str, prm: ProcessRewardModel) -> dict[str, Any]:
    """What config.json of an exported model says of it: how it reads steps, and how problems were put to it."""
    said: dict[str, Any] = {"form": form}
    said |= {"delimiter": prm.delimiter, "max_steps": prm.max_steps, "reduction": prm.reduction}
    layout = prm.layout
    if layout.system is not None and layout.system != prm.form.system:
        said["system"] = layout.system
    return said if layout.template == PLAIN else said | {"template": layout.template}


def head_tensors(head: RewardHead, form: PrmForm) -> dict[str, torch.Tensor]:
    """The tensors of a head that is not part of the model, by their checkpoint names."""
    return {
        f"{name}.{kind}": tensor.detach().cpu().contiguous()
        for name, layer in zip(form.weights, head.layers)
        for kind, tensor in layer.named_parameters()
    }


def build_head(
    form: PrmForm, model: PreTrainedModel, processor, where: str, tensors: dict[str, torch.Tensor] | None = None
) -> RewardHead:
    """The head of a form on a model: label rows of its output head, or layers filled with `tensors`."""
    if form.head == "label_tokens":
        tokenizer = getattr(processor, "tokenizer", processor)
        ids = [token_id(tokenizer, label) for label in form.labels]
        missing = [label for label, token in zip(form.labels, ids) if token is None]
        if missing:
            raise ValueError(
                f"{where}: its tokenizer has no single token for label {', '.join(map(repr, missing))}; "
                f"allowed: a tokenizer with {form.labels[0]!r} and {form.labels[1]!r}, or another form"
            )
        return RewardHead(form.head, output=model.get_output_embeddings(), label_ids=ids)
    layers = []
    for name in form.weights:
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=model.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
        layers.append(layer)
    width, classes = model.config.get_text_config(decoder=True).hidden_size, 1 if form.head == "scalar" else 2
    if layers[0].in_features != width or layers[-1].out_features != classes:
        raise ValueError(
            f"{where}: its head maps {layers[0].in_features} to {layers[-1].out_features}; "
            f"allowed: {width} (the model's hidden size) to {classes}"
        )
    return RewardHead(form.head, layers=layers, positive=form.positive)


def refuse_other_processor(processor, policy_processor, where: str) -> None:
    """Refuse a processor that would read the policy's tokens or images differently, naming both.

    Every token of the policy must have its id here too; more tokens (a step tag) may be known besides.
    """
    ours, policys = (getattr(p, "tokenizer", p) for p in (processor, policy_processor))
    known = ours.get_vocab()
    other = [(token, index) for token, index in policys.get_vocab().items() if known.get(token) != index]
    if other:
        token, index = min(other, key=lambda item: item[1])
        raise ValueError(
            f"{where}: its tokenizer ({_named(ours)}) differs from the policy's ({_named(policys)}): "
            f"{len(other)} tokens, the first {token!r} with id {index} there and {known.get(token)} here"
        )
    images, policy_images = (getattr(p, "image_processor", None) for p in (processor, policy_processor))
    if images is None or policy_images is None:
        return
    mine, theirs = _image_settings(images), _image_settings(policy_images)
    keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if keys:
        shown = ", ".join(f"{key} {theirs.get(key)} there and {mine.get(key)} here" for key in keys[:3])
        raise ValueError(
            f"{where}: its image processor ({type(images).__name__}) differs from the policy's "
            f"({type(policy_images).__name__}): {shown}"
        )


def _image_settings(images) -> dict[str, Any]:
    settings = {"image_processor_type": type(images).__name__} | images.to_dict()
    return {key: value for key, value in settings.items() if not key.endswith("processor_class") and value is not None}


def _named(tokenizer) -> str:
    path = tokenizer.name_or_path
    return f"{type(tokenizer).__name__} of {path}" if path else f"{type(tokenizer).__name__}, {len(tokenizer)} tokens"


def _guess(config: PretrainedConfig, path: str | Path, where: str) -> str:
    """The form of a checkpoint that does not say: by the tensors of its head."""
    names = set(_tensor_files(path))
    found = [name for name in ("qwen_prm", "skywork", "trl") if {f"{w}.weight" for w in FORMS[name].weights} <= names]
    if not found:
        raise ValueError(f"{where}: neither config.json nor its tensors tell its form; name one of {', '.join(FORMS)}")
    return found[0]


def _tensor_files(path: str | Path) -> dict[str, Path]:
    """Every tensor of a checkpoint directory and the file it lies in."""
    found = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _head_tensors(path: str | Path, form: PrmForm, where: str) -> dict[str, torch.Tensor]:
    if not form.weights:
        return {}
    files, tensors = _tensor_files(path), {}
    for name in form.weights:
        if f"{name}.weight" not in files:
            raise ValueError(f"{where}: no tensor {name}.weight, the head of its form, in its safetensors files")
        for kind in ("weight", "bias"):
            if (file := files.get(f"{name}.{kind}")) is not None:
                with safe_open(file, "pt") as opened:
                    tensors[f"{name}.{kind}"] = opened.get_tensor(f"{name}.{kind}")
    return tensors


def _load(config: PretrainedConfig, path: str | Path, dtype: str, attention: str, where: str, trust: bool):
    """Model with an output head, and processor; a family without images is loaded as a text model."""
    arguments: dict[str, Any] = {"dtype": DTYPES[dtype], "use_safetensors": True, "trust_remote_code": trust}
    sees = class_of(config) is None or any(type(config) in kind._model_mapping for kind in IMAGE_CLASSES)
    try:
        if sees:
            model = with_attention(image_class(config), path, attention, **arguments)
            return model.eval(), processor_of(path, trust_remote_code=trust)
        arguments["config"] = AutoConfig.from_pretrained(path)
        model = with_attention(AutoModelForCausalLM, path, attention, **arguments)
        return model.eval(), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ValueError(f"{where}: cannot be loaded ({processor_fault(error)})") from error
