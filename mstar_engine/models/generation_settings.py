"""What a checkpoint's generation config says: which tokens end a response, and what of it has no effect here.

Responses are drawn from the model's own distribution at the temperature and the cuts that the run names, because
training needs their probabilities. What else `model.generate` would do to the logits is said to be left out.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

NAMED_BY_THE_RUN = ("do_sample", "temperature", "top_k", "top_p", "min_p", "max_length", "max_new_tokens")
WITHOUT_EFFECT = ("use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
NEUTRAL: dict[str, object] = {"repetition_penalty": 1.0, "length_penalty": 1.0, "num_beams": 1, "num_beam_groups": 1}
NEUTRAL |= {"typical_p": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "diversity_penalty": 0.0}
"""Values that change nothing; before version 5 of transformers, they were written."""


def end_ids(model: PreTrainedModel) -> set[int]:
    """The tokens at which `model.generate` would end a response; those of the language model's config where the
    generation config names none."""
    text = model.config.get_text_config(decoder=True)
    for config in (getattr(model, "generation_config", None), text):
        named = getattr(config, "eos_token_id", None)
        if named is not None:
            return set(named) if isinstance(named, (list, tuple)) else {named}
    return set()


def left_out(model: PreTrainedModel) -> dict[str, Any]:
    """What the generation config asks for besides, by name: `generate` would do it, and a rollout does not."""
    config = getattr(model, "generation_config", None)
    said = {} if config is None else config.to_diff_dict()
    known = (*NAMED_BY_THE_RUN, *WITHOUT_EFFECT, *TOKENS, "transformers_version")
    return {
        name: value
        for name, value in said.items()
        if name not in known and not name.startswith(("_", "output_", "return_"))
        if value not in (None, False, [], NEUTRAL.get(name))
    }
