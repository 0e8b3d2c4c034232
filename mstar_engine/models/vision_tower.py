"""What of a model sees images: which parameters these are, and keeping them as they are."""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mstar_engine.models.attention import language_configs


def tower_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """All parameters but those of the language model and the output head, where these can be told apart. A family
    whose language model is not a module of its own (Phi-4 multimodal, Chameleon) holds its tower among the layers."""
    configs = language_configs(model)
    roots = [module for module in model.modules() if isinstance(module, PreTrainedModel) and _among(module, configs)]
    behind = [] if not roots else [part for part in roots[-1].children() if not _holds_another(part, configs)]
    behind.append(model.get_output_embeddings())
    skipped = {id(p) for module in behind if module is not None for p in module.parameters()}
    if roots:
        skipped |= {id(p) for p in roots[-1].parameters(recurse=False)}
    return [p for p in model.parameters() if id(p) not in skipped and p.numel() > 0]


def _among(module: PreTrainedModel, configs: list[PretrainedConfig]) -> bool:
    return any(module.config is config for config in configs)


def _holds_another(part: nn.Module, configs: list[PretrainedConfig]) -> bool:
    """Whether a model that is not the language model is in it."""
    return any(isinstance(module, PreTrainedModel) and not _among(module, configs) for module in part.modules())


def vision_tower(model: PreTrainedModel) -> list[nn.Parameter]:
    """What sees images, as transformers names it (with the projector where that is a part of it, as in Qwen-VL), or,
    where a family has no such name for it, all but the language model and the output head."""
    tower = model.get_encoder(modality="image")
    whole = tower is model or tower is model.base_model
    return tower_parameters(model) if whole else list(tower.parameters())


def freeze_vision_tower(model: PreTrainedModel) -> None:
    """Freeze the `vision_tower`. ValueError for a model in which it cannot be told apart."""
    parameters = vision_tower(model)
    if not parameters or len(parameters) == len(list(model.parameters())):
        family = model.config.model_type
        raise ValueError(f"model.freeze_vision_tower=true: model family {family!r} has none apart; allowed: false")
    for parameter in parameters:
        parameter.requires_grad_(False)
