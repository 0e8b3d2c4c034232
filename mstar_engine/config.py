"""What a run can be told: one typed dataclass a section, with every default.

The defaults are the default run: the digits task with the tiny model on a laptop's processor. Names are those of
Hugging Face's TrainingArguments and GenerationConfig where they exist. A value that no run can honour is refused when
the configuration is built; `config_parse.py` turns that into one line. Recipes hold only what differs from here.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from mstar_engine.config_data import AnswersConfig, DataConfig, PretrainConfig, WarmupConfig
from mstar_engine.config_evolve import (
    EvaluateConfig,
    EvolveConfig,
    PromptsConfig,
    SelectConfig,
    TemperatureConfig,
    TrainConfig,
)
from mstar_engine.config_model import ModelConfig, RolloutConfig
from mstar_engine.config_section import (
    Count,
    CountOrOff,
    NonNegative,
    Rate,
    Seed,
    Text,
    section,
)

Stage = Literal["pretrain", "warmup", "annotate", "prm", "evolve", "evaluate", "report"]
STAGES: tuple[str, ...] = get_args(Stage)
Tracker = Literal["tensorboard", "wandb", "trackio", "jsonl"]


@section
class StepsConfig:
    """How a response divides into steps: at `delimiter`, merged to at most `max_steps` (0: not merged)."""

    delimiter: Text = "\n\n"
    max_steps: CountOrOff = 0


@section
class AnnotateConfig:
    """Step labels by Monte Carlo: `solutions` of each of `problems` training problems, and up to `completions` from the
    end of every step, both sampled at `temperature`. `held_out` validation problems are labelled alike, to judge the
    process reward model by.

    `mode`: "hard" (until the first right completion), "soft" (all, their share) or "binary" (search for the first
    error).
    """

    problems: Count = 500
    held_out: Count = 64
    solutions: Count = 4
    mode: Literal["hard", "soft", "binary"] = "hard"
    completions: Count = 8
    temperature: Rate = 1.0


@section
class PrmConfig:
    """The process reward model. It is fitted from `model_name_or_path`: "policy" is the warmed-up policy, else any
    checkpoint; without the prm stage that checkpoint scores as it is (`form`: how it reads steps, "auto" if it says).

    `targets`: "hard" makes every label above 0 a 1. `reduction`: from step scores to the score of a response.
    """

    model_name_or_path: Text = "policy"
    form: Text = "auto"
    head: Literal["label_tokens", "two_class", "scalar"] = "label_tokens"
    targets: Literal["hard", "soft"] = "hard"
    reduction: Literal["min", "mean", "product", "last"] = "min"
    learning_rate: Rate = 1e-3
    num_train_epochs: Count = 4
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "linear"
    warmup_steps: CountOrOff = 10
    per_device_train_batch_size: Count = 32
    weight_decay: NonNegative = 0.05


@section
class RunConfig:
    """A whole run. `threads` 0 uses every core; `stages` are done in the order of `STAGES`.

    `preset` names the row of `presets.py` that the rest was laid over; the defaults are those of "mstar". `report_to`:
    where metrics go besides the run's own files.
    """

    output_dir: Text = "runs/digits"
    preset: str = "mstar"
    seed: Seed = 0
    stages: list[Stage] = Field(default_factory=lambda: list(STAGES))
    threads: CountOrOff = 0
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    answers: AnswersConfig = Field(default_factory=AnswersConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    warmup: WarmupConfig = Field(default_factory=WarmupConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    steps: StepsConfig = Field(default_factory=StepsConfig)
    annotate: AnnotateConfig = Field(default_factory=AnnotateConfig)
    prm: PrmConfig = Field(default_factory=PrmConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evolve: EvolveConfig = Field(default_factory=EvolveConfig)
    temperature: TemperatureConfig = Field(default_factory=TemperatureConfig)
    prompts: PromptsConfig = Field(default_factory=PromptsConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    report_to: list[Tracker] = Field(default_factory=list)

    @property
    def dtype(self) -> str:
        """The type of the parameters of the policy and of the process reward model."""
        return self.model.dtype if self.model.dtype != "auto" else "bfloat16" if self.train.bf16 else "float32"

    @field_validator("rollout")
    @classmethod
    def _adapters_to_merge(cls, value: RolloutConfig, info: ValidationInfo) -> RolloutConfig:
        """What is merged must be there."""
        if value.merge_lora and "model" in info.data and info.data["model"].lora_r == 0:
            raise ValueError("rollout.merge_lora", True, "false, or model.lora_r of 1 or more")
        return value

    @field_validator("rollout")
    @classmethod
    def _room_for_the_warm_up(cls, value: RolloutConfig, info: ValidationInfo) -> RolloutConfig:
        """The responses to a problem are drawn together."""
        warmup = info.data.get("warmup")
        if warmup and warmup.source == "sampled" and warmup.n > value.max_rows:
            raise ValueError("warmup.n", warmup.n, f"at most rollout.max_rows={value.max_rows}")
        return value

    @field_validator("train")
    @classmethod
    def _bf16_has_bfloat16_parameters(cls, value: TrainConfig, info: ValidationInfo) -> TrainConfig:
        """Master weights stand behind parameters that rollout reads in bfloat16."""
        if value.bf16 and "model" in info.data and info.data["model"].dtype not in ("bfloat16", "auto"):
            raise ValueError("train.bf16", True, "false, or model.dtype=bfloat16 or auto")
        return value

    @field_validator("select")
    @classmethod
    def _no_more_than_sampled(cls, value: SelectConfig, info: ValidationInfo) -> SelectConfig:
        """The best k of n responses."""
        samples = info.data["rollout"].n if "rollout" in info.data else value.k
        if value.kind in ("top_k", "random") and value.k > samples:
            raise ValueError("select.k", value.k, f"at most rollout.n={samples}")
        return value

    @field_validator("temperature")
    @classmethod
    def _room_for_a_sweep(cls, value: TemperatureConfig, info: ValidationInfo) -> TemperatureConfig:
        """The arms of a sweep are branches of one prompt and run together."""
        rows = info.data["rollout"].max_rows if "rollout" in info.data else value.rows
        if value.rows > rows and "evolve" in info.data.get("stages", ["evolve"]):
            arms = value.arms
            raise ValueError("temperature.n", value.n, f"at most {rows // arms}: {arms} temperatures x n within "
                             f"rollout.max_rows={rows}")  # fmt: skip
        return value

    @field_validator("prompts")
    @classmethod
    def _prompts_to_mix_in(cls, value: PromptsConfig, info: ValidationInfo) -> PromptsConfig:
        """Unlabelled prompts must exist to be mixed in."""
        data = info.data.get("data")
        if value.unlabelled != "none" and data and data.dataset_name == "digits" and not data.unlabelled_problems:
            raise ValueError("prompts.unlabelled", value.unlabelled, "none, or data.unlabelled_problems of 1 or more")
        if value.unlabelled != "none" and data and data.dataset_name == "files" and not data.unlabelled:
            raise ValueError("prompts.unlabelled", value.unlabelled, "none, or a file as data.unlabelled")
        if value.unlabelled == "pseudo" and "evolve" in info.data and info.data["evolve"].method == "sft":
            raise ValueError("prompts.unlabelled", value.unlabelled, "none or oracle with evolve.method=sft")
        return value

    @field_validator("evaluate")
    @classmethod
    def _room_to_measure(cls, value: EvaluateConfig, info: ValidationInfo) -> EvaluateConfig:
        """A problem is measured by one greedy response and `pass_at_k_n` samples, or the stage's `n`, together."""
        rows, stages = (
            info.data["rollout"].max_rows if "rollout" in info.data else None,
            info.data.get("stages", STAGES),
        )
        for key, needed in (("pass_at_k_n", {"warmup", "evolve"}), ("n", {"evaluate"})):
            if rows is not None and getattr(value, key) + 1 > rows and needed & set(stages):
                raise ValueError(f"evaluate.{key}", getattr(value, key), f"below rollout.max_rows={rows}")
        return value

    @field_validator("stages")
    @classmethod
    def _in_order(cls, value: list[str]) -> list[str]:
        """Stages build on each other: each at most once, in their order."""
        if not value or value != [stage for stage in STAGES if stage in value]:
            raise ValueError("one or more of " + ", ".join(STAGES) + ", each once and in this order")
        return value
