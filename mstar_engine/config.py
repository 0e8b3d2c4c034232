"""What a run can be told: one typed dataclass a section, with every default.

The defaults are the default run: the digits task with the tiny model on a laptop's processor. Names are those of
Hugging Face's TrainingArguments and GenerationConfig where they exist. A value that no run can honour is refused when
the configuration is built; `config_parse.py` turns that into one line. Recipes hold only what differs from here.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from mstar_engine.config_evolve import (
    EvaluateConfig,
    EvolveConfig,
    PromptsConfig,
    SelectConfig,
    TemperatureConfig,
    TrainConfig,
)
from mstar_engine.config_section import (
    Count,
    CountOrOff,
    Momentum,
    NonNegative,
    PositiveShare,
    Rate,
    Seed,
    Share,
    Text,
    section,
)

Stage = Literal["pretrain", "warmup", "annotate", "prm", "evolve", "evaluate", "report"]
STAGES: tuple[str, ...] = get_args(Stage)
Tracker = Literal["tensorboard", "wandb", "trackio", "jsonl"]


@section
class ModelConfig:
    """The policy: a Hugging Face name or folder, or "tiny" for the small model that a run pretrains itself.

    `dtype` is that of its parameters; "auto" is bfloat16 with train.bf16, else float32. `device` "auto" is the GPU
    where there is one. `attn_implementation`, for prompts and in training: "auto" takes flash_attention_2 where that
    runs (on CUDA from compute capability 8.0 on, in half precision, with flash-attn installed), else sdpa.
    `trust_remote_code` runs code that the checkpoint brings; a warning names its files.

    `lora_r` above 0 trains low-rank adapters of that rank (by peft) instead of the weights, at `lora_alpha / lora_r`
    times what they compute, on the linear layers that `lora_target_modules` names: parts of dotted names (q_proj,
    language_model, layers.0.mlp), or all-linear, every one but the output head. `freeze_vision_tower`: what sees images
    stays as it is and takes no adapters.
    """

    model_name_or_path: Text = "tiny"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "auto"] = "sdpa"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False
    lora_r: CountOrOff = 0
    lora_alpha: Rate = 32.0
    lora_dropout: Momentum = 0.0
    lora_target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = "all-linear"
    freeze_vision_tower: bool = False

    @field_validator("lora_alpha", "lora_dropout", "lora_target_modules")
    @classmethod
    def _of_adapters(cls, value: object, info: ValidationInfo) -> object:
        """What says how adapters are would do nothing without any."""
        default = cls.__dataclass_fields__[info.field_name].default
        default = getattr(default, "default", default)
        if info.data.get("lora_r") == 0 and value != default:
            raise ValueError(f"{default}, or model.lora_r of 1 or more")
        return value


@section
class DataConfig:
    """The problems: the digits, or `files` of one's own.

    Digits: how many problems of each kind the task gives; `demonstrations` and `captions` teach the tiny model.
    `unlabelled_problems` are further training problems; only `prompts.unlabelled=oracle` may use their answers.

    Files: `train`, `unlabelled`, `warmup` (demonstrations), `validation`, `test` and `ood` are each a file (JSON, JSON
    Lines, Parquet, TSV), a folder of them, or a Hugging Face data set, read by `format` and `fields`; "format:path"
    names another format, "path#split" a split. What `validation` or `test` does not name is held out of `train`;
    `validation_problems`, `test_problems` and `ood_problems` bound these sets, `limit` the training set (0: all of it).
    Images are looked up in `image_folder`, else beside the file. `max_quarantined`: the share of a set's rows that may
    be flawed and set aside. `check_images`: "decode" reads every pixel once before the run, "header" only headers.
    `cache_dir` keeps images that rows hold as bytes, and up to `image_cache_bytes` of preprocessed ones (0: none).
    """

    dataset_name: Literal["digits", "files"] = "digits"
    train_problems: Count = 1536
    unlabelled_problems: CountOrOff = 1536
    validation_problems: Count = 256
    test_problems: Count = 512
    ood_problems: Count = 256
    demonstrations: Count = 2000
    warmup_captions: CountOrOff = 700
    train: str = ""
    unlabelled: str = ""
    warmup: str = ""
    validation: str = ""
    test: str = ""
    ood: str = ""
    format: Text = "rows"
    fields: dict[str, str] = Field(default_factory=dict)
    image_folder: str = ""
    limit: CountOrOff = 0
    max_quarantined: Share = 0.01
    check_images: Literal["decode", "header"] = "decode"
    max_image_bytes: Count = 64 << 20
    max_image_pixels: Count = 50_000_000
    cache_dir: Text = "~/.cache/mstar_engine"
    image_cache_bytes: CountOrOff = 64 << 30


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
    """How the policy samples, and the room it has for keys and values (`kv_cache_memory` in bytes, at least a MiB).

    `decode`: "fixed" pads decode steps to a few shapes, captured in CUDA graphs and run ahead of the host; "eager"
    takes them as they come; "auto" is "fixed" on CUDA. `torch_compile` compiles the model for steps of fixed shape.
    `image_cache_memory`: bytes of image features kept while the weights that made them stay; "auto" is 1 GiB on CUDA
    and 0, none, on the CPU. `merge_lora`: sample from the weights with the adapters merged into them, at the plain
    model's speed, instead of through both; the weights are put back, bit for bit, after each phase that samples.
    """

    n: Count = 16
    temperature: NonNegative = 1.0
    top_k: CountOrOff = 0
    top_p: PositiveShare = 1.0
    min_p: Share = 0.0
    max_completion_length: Count = 40
    max_rows: Count = 512
    block_size: Count = 16
    kv_cache_memory: Literal["auto"] | Annotated[int, Field(ge=2**20)] = "auto"
    decode: Literal["auto", "eager", "fixed"] = "auto"
    torch_compile: bool = False
    image_cache_memory: Literal["auto"] | CountOrOff = "auto"
    merge_lora: bool = False

    @field_validator("max_rows")
    @classmethod
    def _room_for_a_group(cls, value: int, info: ValidationInfo) -> int:
        """The responses of a problem run together."""
        if value < info.data.get("n", value):
            raise ValueError(f"at least rollout.n={info.data['n']}")
        return value

    @field_validator("torch_compile")
    @classmethod
    def _steps_to_compile(cls, value: bool, info: ValidationInfo) -> bool:
        """What is compiled is a step of fixed shape."""
        if value and info.data.get("decode") == "eager":
            raise ValueError("false with rollout.decode=eager")
        return value


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
        if value.rows > rows:
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
