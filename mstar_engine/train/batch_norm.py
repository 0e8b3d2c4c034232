"""Normalization by batch statistics, which some image towers have, is trained as it is sampled with: by the running
ones. By those of a batch an image's features would depend on the images beside it, and the policy that is taught would
not be the one that answered."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def keep_statistics(model: nn.Module) -> None:
    """Put the batch normalizations of a model in evaluation mode; to be called before each forward of training, for a
    rollout in between puts the whole model back in training mode."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
