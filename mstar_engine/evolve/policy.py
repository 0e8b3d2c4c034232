"""The policy: the one model object that samples, is trained and is measured, with all that belongs to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from mstar_engine.config import RunConfig
from mstar_engine.config_evolve import TrainConfig
from mstar_engine.data.files import limits_of, preprocessed
from mstar_engine.models.export import match_source
from mstar_engine.models.loading import device_of, load_model, save_model
from mstar_engine.models.lora import LoraMerge, add_lora, base_of, has_lora, is_lora, load_lora, save_lora
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.vision_tower import freeze_vision_tower
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.train.checkpoint import (
    load_trainer_state,
    load_weights,
    restore_trainer,
    save_checkpoint,
    trainer_tensors,
)
from mstar_engine.train.likelihood import Likelihood
from mstar_engine.train.schedule import Schedule, schedule_of
from mstar_engine.train.trainer import Trainer

ADAPTERS = "adapters"
"""The folder of an exported checkpoint that holds the adapters that were merged into it."""


class Policy:
    """Model, processor, prompt cache, rollout engine and trainer over one set of parameters.

    `source` is the checkpoint that the weights came from: adapters refer to it, and an export has its keys.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        config: RunConfig,
        schedule: Schedule,
        source: str | Path | None = None,
    ) -> None:
        rollout, train = config.rollout, config.train
        self.model = model
        self.source = source
        self.adapted = has_lora(model)
        self.processor = processor
        self.encoder = prompt_encoder(processor, config)
        self.engine = RolloutEngine(
            model,
            self.encoder,
            max_rows=rollout.max_rows,
            block_size=rollout.block_size,
            kv_cache_memory=None if rollout.kv_cache_memory == "auto" else rollout.kv_cache_memory,
            decode=rollout.decode,
            torch_compile=rollout.torch_compile,
            image_cache_memory=None if rollout.image_cache_memory == "auto" else rollout.image_cache_memory,
            merge_lora=rollout.merge_lora,
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
        """The policy of a Hugging Face checkpoint directory, with a fresh optimizer.

        With model.lora_r a directory of adapters is its base with these adapters; any other gets new ones.
        """
        adapters = Path(path) if config.model.lora_r and is_lora(path) else None
        source = path if adapters is None else base_of(adapters)
        model, processor = load_model(
            source,
            dtype=config.dtype,
            attn_implementation=config.model.attn_implementation,
            device=device_of(config.model.device),
            trust_remote_code=config.model.trust_remote_code,
        )
        prepare(model, config)
        if adapters is not None:
            load_lora(model, adapters)
        return cls(model, processor, config, schedule, source)

    @contextmanager
    def training(self) -> Iterator[Trainer]:
        """Hand the memory of the K/V cache to the trainer, and the trainer's back when it has trained."""
        self.engine.release()
        try:
            yield self.trainer
        finally:
            self.trainer.release()

    def save(self, path: Path, *, export: bool = False, **state: Any) -> None:
        """Write weights, optimizer moments, counters and `state` (JSON-ready) as one checkpoint.

        Of a policy with adapters these are the weights. `export` writes an ordinary checkpoint with the keys of the
        source: with adapters merged, in the source's types, and the adapters in the folder ADAPTERS.
        """
        counters = {"global_step": self.trainer.global_step, "cursor": self.trainer.state_dict()["cursor"]}
        save_checkpoint(
            path,
            self.model,
            self.processor,
            tensors=trainer_tensors(self.trainer),
            state={**counters, **state},
            save=self._export if export else self._write,
        )

    def restore(self, path: Path) -> dict[str, Any]:
        """Put a checkpoint's weights, moments and counters into this policy, bit for bit; returns the saved state."""
        tensors, state = load_trainer_state(path)
        if self.adapted:
            load_lora(self.model, path)
        else:
            load_weights(self.model, path)
        restore_trainer(self.trainer, tensors, state)
        return state

    def _write(self, model: PreTrainedModel, processor: ProcessorMixin, path: Path) -> None:
        if not self.adapted:
            save_model(model, processor, path)
            return
        save_lora(model, path, _seen_from(path, self.source))
        processor.save_pretrained(path)

    def _export(self, model: PreTrainedModel, processor: ProcessorMixin, path: Path) -> None:
        with LoraMerge(model).active():
            save_model(model, processor, path)
        if self.source is not None:
            match_source(path, self.source, dtypes=self.adapted)
        if self.adapted:
            (path / ADAPTERS).mkdir()
            save_lora(model, path / ADAPTERS, _seen_from(path / ADAPTERS, self.source))


def evolve_schedule(train: TrainConfig) -> Schedule:
    """The learning rate of the evolution by its step."""
    return schedule_of(
        train.learning_rate,
        train.lr_scheduler_type,
        train.warmup_steps,
        train.max_steps,
        decay=train.decay_share,
        floor=train.min_lr_rate,
    )


def prompt_encoder(processor: ProcessorMixin, config: RunConfig) -> PromptEncoder:
    """What puts problems to the policy of a run, wherever it is asked: with the run's system message and template."""
    return PromptEncoder(
        processor,
        config.prompts.system or None,
        template=config.prompts.template,
        images=preprocessed(config.data),
        limits=limits_of(config.data),
    )


def prepare(model: PreTrainedModel, config: RunConfig) -> None:
    """Freeze and adapt a model as the configuration says. ValueError names the key that the model cannot follow."""
    wanted = config.model
    if wanted.freeze_vision_tower:
        freeze_vision_tower(model)
    if wanted.lora_r:
        add_lora(
            model,
            rank=wanted.lora_r,
            alpha=wanted.lora_alpha,
            dropout=wanted.lora_dropout,
            targets=wanted.lora_target_modules,
            seed=config.seed,
        )


def _seen_from(path: Path, source: str | Path | None) -> str | Path:
    """How adapters at `path` name their base: one that lies beside them in a run directory, which may move, relative
    to them; any other folder in full; else a hub name."""
    if source is None:
        return ""
    base = Path(source)
    if not base.is_dir():
        return source
    inside = base.resolve().parent in path.resolve().parents
    return os.path.relpath(base.resolve(), path.resolve()) if inside else base.resolve()
