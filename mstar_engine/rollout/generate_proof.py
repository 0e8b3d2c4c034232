"""That the engine computes what `model.generate` does, shown on the first prompt of each kind before any is sampled.

A family may keep more from token to token than keys and values (a recurrent state, images that enter by
cross-attention), or take positions in its own way. What gives that away in a config is refused by the config; here a
family that nothing is known of is run for two tokens, by transformers' loop with its own cache and by ours.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mstar_engine.models.attention import attention_step
from mstar_engine.models.compatibility import KVShape, forget_rope_deltas, ordinary_token_id, special_image_ids
from mstar_engine.models.image_batches import stack_inputs
from mstar_engine.models.packed_row import in_words
from mstar_engine.models.positions import PositionWatch
from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.rollout.steps import ExtendStep, PrefillStep

log = logging.getLogger(__name__)
TOKENS = 2
MOST, MOST_IN_HALF = 0.01, 0.25
"""By how much logits may differ, relative to their norm: above rounding, which adds up over the layers of a large model
in half precision, and below what a foreign state does."""


class OwnLoopError(Exception):
    """A family's `generate` has drawn tokens and has no logits to show for them."""


class GenerateProof:
    """Proves kinds of prompts, once each; kept over waves."""

    def __init__(self, model: PreTrainedModel, shape: KVShape) -> None:
        self.model = model
        self.shape = shape
        self.seen: set[frozenset[str]] = set()
        last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last = {"logits_to_keep": 1} if last else {}

    def check(self, prompts: Sequence[EncodedPrompt], backend: str) -> None:
        """Prove the kinds that are new among `prompts`. To be called where the model is hooked, with no step set.

        ValueError naming the family where the logits are others than those of `model.generate`.
        """
        for prompt in prompts:
            kind = frozenset((*prompt.inputs, *prompt.token_inputs))
            if kind not in self.seen:
                self._prove(prompt, backend)
                self.seen.add(kind)

    @torch.no_grad()
    def _prove(self, prompt: EncodedPrompt, backend: str) -> None:
        family = self.model.config.model_type
        inputs = stack_inputs([prompt], self.shape.device)
        try:
            drawn, expected = self._generate(inputs)
        except torch.OutOfMemoryError:
            raise
        except OwnLoopError as error:
            raise ValueError(
                f"model family {family!r} cannot be run by the rollout engine: its class brings a loop of its own, "
                "which draws without logits of one token after another; use `model.generate`."
            ) from error
        except Exception as error:  # a family's own loop: nothing to compare with
            log.warning(
                "rollout: model family %r is run unproven, `model.generate` fails (%s)", family, in_words(error)
            )
            drawn, expected = [ordinary_token_id(self.model.config)], []
        finally:
            forget_rope_deltas(self.model)
        try:
            found = self._ours(inputs, drawn, backend)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a family's own code
            instead = "use `model.generate`" if expected else "`model.generate` fails too: are these prompts for it?"
            raise ValueError(
                f"model family {family!r} cannot be run by the rollout engine: behind a prompt of {_named(prompt)} its "
                f"forward fails ({in_words(error)}); {instead}"
            ) from error
        differences = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected)]
        most = MOST_IN_HALF if self.shape.dtype.itemsize == 2 else MOST
        if max(differences, default=0.0) > most:
            step = next(i for i, difference in enumerate(differences) if difference > most)
            raise ValueError(
                f"model family {family!r} cannot be run by the rollout engine: behind a prompt of {_named(prompt)}, "
                f"the logits of token {step} differ from those of `model.generate` by {differences[step]:.1%}, so it "
                "keeps more than keys and values from token to token, or counts positions in its own way; use "
                "`model.generate`."
            )

    def _generate(self, inputs: dict[str, Tensor]) -> tuple[list[int], list[Tensor]]:
        """transformers' loop: the tokens it draws, and the logits of each, float32 [V]."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            num_beams=1,
            suppress_tokens=special_image_ids(self.model.config) or None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        if output.logits is None:
            raise OwnLoopError
        return output.sequences[0, -TOKENS:].tolist(), [logits[0].float() for logits in output.logits]

    def _ours(self, inputs: dict[str, Tensor], drawn: Sequence[int], backend: str) -> list[Tensor]:
        """The same logits by a prefill and a step behind it, on a cache of its own."""
        length, device = inputs["input_ids"].shape[1], self.shape.device
        cache = KVCache(self.shape, 1, length + 1)
        slots = torch.arange(length + 1, dtype=torch.int32, device=device)
        positions = PositionWatch(self.model)
        forget_rope_deltas(self.model)
        with attention_step(PrefillStep(cache, slots[:length], backend)), positions.watching():
            first = self.model(use_cache=False, **inputs, **self._last).logits[0, -1]
        place = length + positions.offsets(1, length)[0]
        step = ExtendStep(cache, slots[length:], [(0, 1, slots.long())], backend)
        with attention_step(step):
            second = self.model(
                input_ids=torch.tensor([[drawn[0]]], device=device),
                position_ids=torch.tensor([[place]], device=device),
                use_cache=False,
                **self._last,
            ).logits[0, -1]
        return [first.float(), second.float()]


def _named(prompt: EncodedPrompt) -> str:
    """What a prompt shows a model besides text."""
    return ", ".join([*prompt.inputs, *prompt.token_inputs]) or "text alone"
