"""Families that the engine refuses when it looks at a model: nothing in their config says what stands in the way."""

from __future__ import annotations

from families import FixedPrompts
from family import IMAGE, VISION, Family, auto, build, prompts
from llava_families import clip, pixels
from matrix import processor

from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Problem, SamplingParams

OPT = dict(model_type="opt", vocab_size=160, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4)
OPT |= dict(max_position_embeddings=256, word_embed_proj_dim=32, dropout=0.0)
FORMER = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, encoder_hidden_size=32)
TOWER = dict(image_size=24, patch_size=8) | VISION
KOSMOS = dict(vocab_size=160, embed_dim=32, layers=2, ffn_dim=64, attention_heads=4, max_position_embeddings=512)
GIT = dict(vocab_size=160, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


def _blip():
    text = dict(vocab_size=160, encoder_hidden_size=32, projection_dim=32, bos_token_id=5, eos_token_id=4)
    return auto("blip", vision_config=TOWER, text_config=VISION | text | dict(sep_token_id=3))


def _former(name: str):
    own = dict(vision_config=TOWER, qformer_config=FORMER, text_config=OPT, num_query_tokens=4)
    return auto(name, image_token_index=IMAGE, **own)


def _kosmos_2_5():
    vision = VISION | dict(patch_embed_hidden_size=48, head_dim=16, max_num_patches=16, patch_size=4)
    return auto("kosmos-2.5", text_config=KOSMOS, vision_config=vision, latent_query_num=4)


REFUSED_MODELS = {
    "blip": (_blip, "does not read text tokens alone"),
    "blip-2": (lambda: _former("blip-2"), "does not read text tokens alone"),
    "instructblip": (lambda: _former("instructblip"), "does not read text tokens alone"),
    "instructblipvideo": (lambda: _former("instructblipvideo"), "does not read text tokens alone"),
    "kosmos-2": (
        lambda: auto("kosmos-2", text_config=KOSMOS, vision_config=clip(), latent_query_num=4),
        "does not read text tokens alone",
    ),
    "kosmos-2.5": (_kosmos_2_5, "differ from those of `model.generate`"),
    "git": (lambda: auto("git", vision_config=TOWER, **GIT), "do not go through transformers' attention interface"),
}
"""By model type, its tiny config and words of the reason."""


def model_reason(name: str) -> str:
    """Why a family is refused for a prompt of text. AbsentError where transformers does not have it; an assertion if it
    is not refused in one line."""
    made = Family(REFUSED_MODELS[name][0], pixels(4, 24), attention="eager", cases=("none",))
    model, shown = build(made), prompts(made)
    try:
        engine = RolloutEngine(model, FixedPrompts(shown, processor()))
        list(engine.generate([Problem(id="none", question="")], SamplingParams(n=1, temperature=0.0, max_tokens=4)))
    except ValueError as error:
        assert f"model family {name!r} cannot be run" in str(error) and "\n" not in str(error)
        assert "use `model.generate`" in str(error)
        return str(error).partition("rollout engine: ")[2].partition("; use `model.generate`")[0]
    raise AssertionError(f"{name} is not refused")
