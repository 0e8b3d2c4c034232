"""Rollouts on the CPU: the engine against `model.generate(num_return_sequences=16)`, same model, prompts and threads.

A LLaVA-class model with random weights answers prompts of 288 tokens (256 of them an image) 16 times each. A response
ends when it draws one of a set of stop tokens, which happens at about 1 token in 40, or at 128 tokens; so lengths are
spread as in real rollouts, and a static batch waits for its longest row. Both sides count the tokens up to the stop.

Floor: none is stated, since the share of each limit (weights read once a step, matrix products, Python per module)
moves with the number of live rows.

    python -m benchmarks.rollout_throughput [--json FILE] [--quick]
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from benchmarks.harness import Row, Side, main, make_row, median_seconds
from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Problem, SamplingParams

VOCABULARY, IMAGE_TOKEN, IMAGE_TOKENS, TEXT_TOKENS = 8192, 1, 256, 32
STOP_IDS = tuple(range(VOCABULARY - VOCABULARY // 40, VOCABULARY))
"""Under nearly flat random logits a draw falls among these about once in 40 tokens."""
SAMPLES, MAX_TOKENS = 16, 128


def build_model(vocabulary: int = VOCABULARY, tied: bool = False) -> PreTrainedModel:
    """About 5M parameters besides the embeddings: 4 text layers of width 256, a small vision tower with 256 patches."""
    torch.manual_seed(0)
    vision = dict(model_type="clip_vision_model", hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    vision |= dict(num_attention_heads=2, image_size=128, patch_size=8, projection_dim=64)
    text = dict(model_type="llama", vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=4)
    text |= dict(num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=1024, eos_token_id=None)
    text |= dict(tie_word_embeddings=tied)
    config = AutoConfig.for_model(
        "llava",
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        tie_word_embeddings=tied,
    )
    return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()


class RandomPrompts(PromptEncoder):
    """Prompts of random text around one random image."""

    def encode(self, problem: Problem) -> EncodedPrompt:
        """The prompt that the problem's number seeds."""
        generator = torch.Generator().manual_seed(int(problem.id))
        text = torch.randint(2, VOCABULARY, (TEXT_TOKENS,), generator=generator)
        ids = torch.cat([text[:4], torch.full((IMAGE_TOKENS,), IMAGE_TOKEN), text[4:]])
        return EncodedPrompt(ids, {"pixel_values": torch.randn(1, 3, 128, 128, generator=generator)})


class Workload:
    """The same problems for both sides; `produced` counts the tokens of the last call of each."""

    def __init__(self, model: PreTrainedModel, engine: RolloutEngine, count: int) -> None:
        self.model = model
        self.engine = engine
        self.problems = [Problem(id=str(i), question="") for i in range(count)]
        prompts = [engine.encoder.encode(problem) for problem in self.problems]
        self.ids = torch.stack([prompt.input_ids for prompt in prompts])
        self.pixels = torch.cat([prompt.inputs["pixel_values"] for prompt in prompts])
        self.produced: dict[str, int] = {}

    def ours(self) -> None:
        """The engine."""
        params = SamplingParams(n=SAMPLES, max_tokens=MAX_TOKENS, seed=1, stop_token_ids=STOP_IDS)
        groups = list(self.engine.generate(self.problems, params))
        self.produced["ours"] = sum(len(response.token_ids) for group in groups for response in group.responses)

    def peer(self) -> None:
        """transformers, all problems in one batch."""
        torch.manual_seed(1)
        output = self.model.generate(
            input_ids=self.ids,
            pixel_values=self.pixels,
            attention_mask=torch.ones_like(self.ids),
            do_sample=True,
            top_k=0,
            num_return_sequences=SAMPLES,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=list(STOP_IDS),
            pad_token_id=0,
            suppress_tokens=[IMAGE_TOKEN],
        )[:, self.ids.shape[1] :]
        self.produced["peer"] = int((output != 0).sum())


def rows(quick: bool) -> Iterable[Row]:
    """One row a batch of problems."""
    model = build_model()
    engine = RolloutEngine(model, RandomPrompts(build_tiny(0)[1]), max_rows=256)
    for count in (2,) if quick else (2, 4):
        work = Workload(model, engine, count)
        sides = [Side("engine", work.ours), Side("generate", work.peer)]
        ours_seconds, peer_seconds = median_seconds(sides, repeats=1 if quick else 3)
        ours_rate, peer_rate = work.produced["ours"] / ours_seconds, work.produced["peer"] / peer_seconds
        yield make_row(
            f"{count} problems x {SAMPLES}, prompt {IMAGE_TOKENS + TEXT_TOKENS}, responses to {MAX_TOKENS}",
            "RolloutEngine",
            "model.generate",
            ours_rate,
            peer_rate,
            "tokens/s",
            ours_rate / peer_rate,
        )


if __name__ == "__main__":
    main("rollout_throughput", rows)
