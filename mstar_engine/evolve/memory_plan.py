"""What a run needs of a device's memory, phase by phase, from sizes alone: an upper estimate, made before any is taken.

What lives together is what `pipeline.py` keeps together: policy and optimizer from the warm-up on, the policy gone
while a process reward model is fitted, that model beside the policy in the evolution, the K/V cache given back before a
step is taken. In bytes, with P parameters of which T are trained, of `itemsize` bytes:

    weights     P * itemsize, adapters included
    optimizer   T * 12 with train.bf16 (float32 master and two moments), else T * 2 * itemsize
    gradients   T * 4 with train.bf16 (float32), else T * itemsize
    K/V cache   bytes a token * (prompts at a time * longest prompt + rows * longest completion); responses to a prompt
                share it; at most rollout.kv_cache_memory
    a layer     tokens * itemsize * (8 hidden + 4 (queries + keys) + 4 inner): what a layer of norms, attention without
                scores and a gated MLP keeps for the backward pass (Llama in bfloat16 measures a tenth less, Qwen3 6%
                more; an eager attention would add its scores)
    activations layers * a layer; with train.gradient_checkpointing layers * tokens * itemsize * hidden + a layer; the
                same of the tower's patches while it is trained, else a layer; logits of some rows, and where the output
                head is trained its gradient in float32
    sampling    a layer of the prompts that are read together, the logits of all rows, and on a GPU a copy of the query,
                key and value projections

What the framework itself takes (a CUDA context, captured graphs, fragments: 1 to 3 GiB) comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from mstar_engine.config import RunConfig
from mstar_engine.models.compatibility import KVShape
from mstar_engine.models.model_size import ModelSize, Stack
from mstar_engine.train.linear_cross_entropy import MOST_LOGITS

PREFILL = 8192
"""Tokens of prompts that the engine reads together."""
FEATURES = 2**30
"""Image features that "auto" keeps on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The longest prompt of a run, in tokens, the most patches of one's images, and the bytes of the image features of
    all problems."""

    tokens: int
    patches: int
    features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What one phase holds at the same time, in bytes. `scorer`: a process reward model beside the policy; `group`: the
    part of the cache that the responses to one prompt need."""

    name: str
    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0
    cache: int = 0
    features: int = 0
    scorer: int = 0
    group: int = 0

    @property
    def least(self) -> int:
        """What it cannot do without: with less K/V cache fewer rows run at a time."""
        return self.total - self.cache + self.group

    @property
    def total(self) -> int:
        """All of it."""
        held = (self.weights, self.optimizer, self.gradients, self.activations, self.cache, self.features, self.scorer)
        return sum(held)


class MemoryPlan:
    """The phases of a run of `config`. `scorer`: the process reward model, as it is fitted, or None."""

    def __init__(
        self,
        config: RunConfig,
        policy: ModelSize,
        shape: KVShape,
        prompt: Prompt,
        scorer: ModelSize | None,
        *,
        on_gpu: bool,
    ) -> None:
        self.config, self.policy, self.shape, self.prompt, self.scorer = config, policy, shape, prompt, scorer
        self.on_gpu = on_gpu

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with the longest completion."""
        return self.prompt.tokens + self.config.rollout.max_completion_length

    def phases(self) -> list[Phase]:
        """Those that the run's stages have, in order."""
        config, stages = self.config, self.config.stages
        held = {"weights": self.policy.weights, "optimizer": self.optimizer(self.policy)}
        beside = {"scorer": 0 if self.scorer is None else self.scorer.weights}
        found = []
        if "warmup" in stages and config.warmup.source == "sampled":
            found.append(self._sampling("warmup: sample", config.warmup.n, **held))
        if "warmup" in stages:
            found.append(self._training("warmup: train", config.warmup.per_device_train_batch_size, **held))
            found.append(self._sampling("warmup: measure", 1, **held))
        if "annotate" in stages:
            found.append(self._sampling("annotate", config.annotate.solutions, **held))
        if "prm" in stages and self.scorer is not None:
            fitted = {"weights": self.scorer.weights, "optimizer": self.optimizer(self.scorer)}
            size = config.prm.per_device_train_batch_size
            found.append(self._training("prm: fit", size, self.scorer, logits=False, **fitted))
        if "evolve" in stages:
            if config.evolve.method != "sft":
                found.append(self._sampling("evolve: sample", config.rollout.n, **held, **beside))
            size = config.train.per_device_train_batch_size
            found.append(self._training("evolve: train", size, **held, **beside))
        if "evaluate" in stages:
            scored = beside if config.evaluate.n > 1 else {}
            found.append(self._sampling("evaluate", 1 + config.evaluate.n, **held, **scored))
        return found

    def optimizer(self, size: ModelSize) -> int:
        """Bytes that outlive a step: moments, and float32 masters with train.bf16."""
        return size.trained * (12 if self.config.train.bf16 else 2 * size.itemsize)

    def cache(self, responses: int) -> int:
        """Bytes of the K/V cache for rollout.max_rows rows, so many of them responses to one prompt."""
        rollout = self.config.rollout
        wanted = self._kept(-(-rollout.max_rows // responses), rollout.max_rows)
        return wanted if rollout.kv_cache_memory == "auto" else min(wanted, rollout.kv_cache_memory)

    def _kept(self, prompts: int, rows: int) -> int:
        tokens = prompts * self.prompt.tokens + rows * self.config.rollout.max_completion_length
        return tokens * self.shape.bytes_per_token

    def features(self) -> int:
        """Bytes of image features that are kept, at most."""
        asked = self.config.rollout.image_cache_memory
        kept = (FEATURES if self.on_gpu else 0) if asked == "auto" else asked
        return min(kept, self.prompt.features)

    def _sampling(self, name: str, responses: int, **held: int) -> Phase:
        language, rows = self.policy.language, self.config.rollout.max_rows
        together = max(1, min(PREFILL // self.prompt.tokens, rows))
        tokens = together * self.prompt.tokens
        working = layer_bytes(language, tokens, self.policy.itemsize) + 4 * rows * self.policy.vocabulary
        if self.policy.tower is not None:
            working += layer_bytes(self.policy.tower, together * self.prompt.patches, self.policy.itemsize)
        if self.on_gpu:
            joined = language.layers * language.hidden * (language.queries + 2 * language.keys)
            working += joined * self.policy.itemsize
        cache = self.cache(responses)
        group = min(cache, self._kept(1, responses))
        return Phase(name=name, activations=working, cache=cache, group=group, features=self.features(), **held)

    def _training(
        self, name: str, examples: int, size: ModelSize | None = None, *, logits: bool = True, **held: int
    ) -> Phase:
        size = size or self.policy
        train = self.config.train
        tokens = examples * self.longest
        if train.max_tokens:  # one longer example still goes through, alone
            tokens = min(tokens, max(train.max_tokens, self.longest))
        together = max(1, tokens // self.longest)
        kept = kept_bytes(size.language, tokens, size.itemsize, train.gradient_checkpointing)
        if size.tower is not None:
            patches = together * self.prompt.patches
            if size.trains_tower:
                kept += kept_bytes(size.tower, patches, size.itemsize, train.gradient_checkpointing)
            else:
                kept += layer_bytes(size.tower, patches, size.itemsize)
        if logits:
            rows = together * self.config.rollout.max_completion_length
            kept += min(rows * size.vocabulary, MOST_LOGITS) * (8 + size.itemsize)
            kept += 4 * size.vocabulary * size.language.hidden if size.trains_head else 0
        gradients = size.trained * (4 if train.bf16 else size.itemsize)
        features = self.features() if size is self.policy and size.keeps_features else 0
        return Phase(name=name, gradients=gradients, activations=kept, features=features, **held)


def layer_bytes(stack: Stack, tokens: int, itemsize: int) -> int:
    """What one layer keeps of so many tokens for its backward pass, about."""
    widths = 8 * stack.hidden + 4 * (stack.queries + stack.keys) + 4 * stack.inner
    return tokens * itemsize * widths


def kept_bytes(stack: Stack, tokens: int, itemsize: int, checkpointing: bool) -> int:
    """What all layers keep; with `checkpointing` the input of each, and one layer's while it is computed again."""
    one = layer_bytes(stack, tokens, itemsize)
    return stack.layers * tokens * itemsize * stack.hidden + one if checkpointing else stack.layers * one
