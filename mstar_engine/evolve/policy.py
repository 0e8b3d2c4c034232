"""The policy: the one model object that samples, is trained and is measured, with all that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from mstar_engine.config import RunConfig
from mstar_engine.models.loading import device_of, load_model
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.train.checkpoint import (
    load_trainer_state,
    load_weights,
    restore_trainer,
    save_checkpoint,
    trainer_tensors,
)
from mstar_engine.train.likelihood import Likelihood
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer


class Policy:
    """Model, processor, prompt cache, rollout engine and trainer over one set of parameters."""

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, config: RunConfig, schedule: Schedule
    ) -> None:
        rollout, train = config.rollout, config.train
        self.model = model
        self.processor = processor
        self.encoder = PromptEncoder(processor)
        self.engine = RolloutEngine(
            model,
            self.encoder,
            max_rows=rollout.max_rows,
            block_size=rollout.block_size,
            kv_cache_memory=None if rollout.kv_cache_memory == "auto" else rollout.kv_cache_memory,
            decode=rollout.decode,
            torch_compile=rollout.torch_compile,
            image_cache_memory=None if rollout.image_cache_memory == "auto" else rollout.image_cache_memory,
        )
        self.trainer = Trainer(
            model,
            self.encoder,
            schedule,
            betas=(train.adam_beta1, train.adam_beta2),
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            max_tokens=train.max_tokens or None,
            objective=Likelihood(packing=train.packing, use_liger_kernel=train.use_liger_kernel),
            bf16=train.bf16,
            gradient_checkpointing=train.gradient_checkpointing,
        )

    @classmethod
    def load(cls, path: str | Path, config: RunConfig, schedule: Schedule) -> Policy:
        """The policy of a Hugging Face checkpoint directory, with a fresh optimizer."""
        model, processor = load_model(
            path,
            dtype=config.dtype,
            attn_implementation=config.model.attn_implementation,
            device=device_of(config.model.device),
            trust_remote_code=config.model.trust_remote_code,
        )
        return cls(model, processor, config, schedule)

    @contextmanager
    def training(self) -> Iterator[Trainer]:
        """Hand the memory of the K/V cache to the trainer, and the trainer's back when it has trained."""
        self.engine.release()
        try:
            yield self.trainer
        finally:
            self.trainer.release()

    def save(self, path: Path, **state: Any) -> None:
        """Write weights, optimizer moments, counters and `state` (JSON-ready) as one checkpoint."""
        counters = {"global_step": self.trainer.global_step, "cursor": self.trainer.state_dict()["cursor"]}
        save_checkpoint(
            path, self.model, self.processor, tensors=trainer_tensors(self.trainer), state={**counters, **state}
        )

    def restore(self, path: Path) -> dict[str, Any]:
        """Put a checkpoint's weights, moments and counters into this policy, bit for bit; returns the saved state."""
        tensors, state = load_trainer_state(path)
        load_weights(self.model, path)
        restore_trainer(self.trainer, tensors, state)
        return state
