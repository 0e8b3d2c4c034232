"""What a run can be told: one typed dataclass a section, with every default.

The defaults are the default run: the digits task with the tiny model on a laptop's processor. Names are those of
Hugging Face's TrainingArguments and GenerationConfig where they exist. A value that no run can honour is refused when
the configuration is built; `config_parse.py` turns that into one line. Recipes hold only what differs from here.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

Stage = Literal["pretrain", "warmup", "annotate", "prm", "evolve", "evaluate", "report"]
STAGES: tuple[str, ...] = get_args(Stage)

Count = Annotated[int, Field(ge=1)]
CountOrOff = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]

section = dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True),
)


@section
class ModelConfig:
    """The policy: a Hugging Face name or folder, or "tiny" for the small model that a run pretrains itself."""

    model_name_or_path: Text = "tiny"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"


@section
class DataConfig:
    """The task and how many problems of each kind it gives; `captions` teach the tiny model to see."""

    dataset_name: Literal["digits"] = "digits"
    train_problems: Count = 4096
    validation_problems: Count = 256
    test_problems: Count = 512
    ood_problems: Count = 256
    demonstrations: Count = 2000
    warmup_captions: CountOrOff = 700


@section
class PretrainConfig:
    """Fitting of the tiny model before the run proper: its image tower alone, then tower and language together, then
    the judging of readings.

    Small batches pay: at a rate of 3e-3, 250 steps of 32 read 95% of the tiles and 130 steps of 64 read 67%.
    """

    ground_steps: CountOrOff = 200
    ground_batch_size: Count = 32
    ground_learning_rate: Rate = 3e-3
    align_steps: CountOrOff = 300
    align_batch_size: Count = 32
    align_learning_rate: Rate = 2e-3
    check_steps: CountOrOff = 150
    check_batch_size: Count = 32
    check_learning_rate: Rate = 2e-3


@section
class WarmupConfig:
    """Supervised training on demonstrations: gives the policy its output format. `max_steps` -1: the epochs decide.

    The default stops where the policy gets somewhat under half of the problems right: completions from a much weaker
    one say little about a step.
    """

    max_steps: Annotated[int, Field(ge=-1)] = 900
    num_train_epochs: Rate = 1.0
    per_device_train_batch_size: Count = 16
    learning_rate: Rate = 8e-4
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "linear"
    warmup_steps: CountOrOff = 10


@section
class RolloutConfig:
    """How the policy samples, and the room it has for keys and values (`kv_cache_memory` in bytes, at least a MiB)."""

    n: Count = 16
    temperature: NonNegative = 1.0
    top_k: CountOrOff = 0
    top_p: PositiveShare = 1.0
    min_p: Share = 0.0
    max_completion_length: Count = 40
    max_rows: Count = 512
    block_size: Count = 16
    kv_cache_memory: Literal["auto"] | Annotated[int, Field(ge=2**20)] = "auto"

    @field_validator("max_rows")
    @classmethod
    def _room_for_a_group(cls, value: int, info: ValidationInfo) -> int:
        """The responses of a problem run together."""
        if value < info.data.get("n", value):
            raise ValueError(f"at least rollout.n={info.data['n']}")
        return value


@section
class StepsConfig:
    """How a response divides into steps: at `delimiter`, merged to at most `max_steps` (0: not merged)."""

    delimiter: Text = "\n\n"
    max_steps: CountOrOff = 0


@section
class AnnotateConfig:
    """Step labels by Monte Carlo: `solutions` of each of `problems` training problems, sampled as rollouts are, and up
    to `completions` from the end of every step, at `temperature`. `held_out` validation problems are labelled alike,
    to judge the process reward model by.

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
class SelectConfig:
    """H: which of the correct responses are learned from.

    "all", `k` at "random", the `k` with the highest score ("top_k"), or all that score above `alpha` ("threshold").
    With `alpha`, the others too take only responses that score above it.
    """

    kind: Literal["all", "random", "top_k", "threshold"] = "top_k"
    k: Count = 2
    alpha: Share | None = None

    @field_validator("alpha")
    @classmethod
    def _threshold_has_a_value(cls, value: float | None, info: ValidationInfo) -> float | None:
        """A threshold must be somewhere."""
        if value is None and info.data.get("kind") == "threshold":
            raise ValueError("0 to 1, with select.kind=threshold")
        return value

    @property
    def needs_scores(self) -> bool:
        """Whether a process reward model takes part."""
        return self.kind in ("top_k", "threshold") or self.alpha is not None


@section
class TrainConfig:
    """The optimizer of the evolution, one a run.

    An iteration trains `num_train_epochs` times on what it kept (the paper: once). `max_steps` optimizer steps in all
    (on the method's clock) end the training and are the horizon of the schedules that need one; -1 is no limit.
    """

    learning_rate: Rate = 2e-4
    num_train_epochs: Count = 2
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    warmup_steps: CountOrOff = 0
    max_steps: Annotated[int, Field(ge=-1)] = -1
    per_device_train_batch_size: Count = 64
    gradient_accumulation_steps: Count = 1
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0
    adam_beta1: Momentum = 0.9
    adam_beta2: Momentum = 0.98

    @field_validator("max_steps")
    @classmethod
    def _schedule_has_an_end(cls, value: int, info: ValidationInfo) -> int:
        """A schedule that decays needs to know where it ends."""
        kind = info.data.get("lr_scheduler_type")
        if kind in ("linear", "cosine") and value < 1:
            raise ValueError(f"1 or more with lr_scheduler_type={kind}")
        return value


@section
class EvolveConfig:
    """The loop. `interval`: the labelled problems of one iteration, as a share (0.25, 1.0) or a number (200)."""

    method: Literal["continuous", "iterative_rft", "rest_em"] = "continuous"
    iterations: Count = 6
    interval: PositiveShare | Annotated[int, Field(ge=2)] = 0.125

    @field_validator("interval", mode="before")
    @classmethod
    def _one_is_ambiguous(cls, value: object) -> object:
        """A bare 1 could be one problem or all of them."""
        if type(value) is int and value == 1:
            raise ValueError("1.0 for all problems, a share below it, or 2 problems or more")
        return value


@section
class EvaluateConfig:
    """What is measured after every iteration: greedy accuracy, and Pass@K from `pass_at_k_n` samples a problem."""

    pass_at_k_n: Count = 8
    pass_at_k: Count = 8
    temperature: Rate = 1.0

    @field_validator("pass_at_k")
    @classmethod
    def _enough_samples(cls, value: int, info: ValidationInfo) -> int:
        """Pass@K needs at least K samples."""
        samples = info.data.get("pass_at_k_n", value)
        if value > samples:
            raise ValueError(f"at most evaluate.pass_at_k_n={samples}")
        return value


@section
class RunConfig:
    """A whole run. `threads` 0 uses every core; `stages` are done in the order of `STAGES`."""

    output_dir: Text = "runs/digits"
    seed: Seed = 0
    stages: list[Stage] = Field(default_factory=lambda: list(STAGES))
    threads: CountOrOff = 0
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    warmup: WarmupConfig = Field(default_factory=WarmupConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    steps: StepsConfig = Field(default_factory=StepsConfig)
    annotate: AnnotateConfig = Field(default_factory=AnnotateConfig)
    prm: PrmConfig = Field(default_factory=PrmConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evolve: EvolveConfig = Field(default_factory=EvolveConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @field_validator("evaluate")
    @classmethod
    def _room_to_measure(cls, value: EvaluateConfig, info: ValidationInfo) -> EvaluateConfig:
        """A problem is measured by one greedy response and `pass_at_k_n` samples, together."""
        rows = info.data["rollout"].max_rows if "rollout" in info.data else value.pass_at_k_n + 1
        if value.pass_at_k_n + 1 > rows:
            raise ValueError("evaluate.pass_at_k_n", value.pass_at_k_n, f"below rollout.max_rows={rows}")
        return value

    @field_validator("stages")
    @classmethod
    def _in_order(cls, value: list[str]) -> list[str]:
        """Stages build on each other: each at most once, in their order."""
        if not value or value != [stage for stage in STAGES if stage in value]:
            raise ValueError("one or more of " + ", ".join(STAGES) + ", each once and in this order")
        return value
