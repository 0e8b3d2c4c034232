"""What the evolution can be told: selection, optimizer, method, temperature, prompts, what is measured.

One part of the configuration; `config.py` puts the whole together.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from mstar_engine.config_section import (
    AutoOrBool,
    Count,
    CountOrOff,
    Momentum,
    NonNegative,
    PositiveShare,
    Rate,
    Share,
    Text,
    section,
)
from mstar_engine.prompt_template import PLAIN, check_template, refuse_images


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
    "wsd" (warm-up, stable, decay) falls over the last `decay_share` of the horizon; what falls ends at
    `min_lr_rate` times the learning rate. A step learns from `per_device_train_batch_size` examples in one forward
    pass, `gradient_accumulation_steps` times.

    How that is computed, for every stage that trains. `bf16`: parameters in bfloat16, on which rollout runs, behind
    float32 master weights, moments and gradients (with model.dtype=bfloat16 or auto). `max_tokens` cuts a forward pass
    that has more, padding included (0: no limit; the warm-up and the process reward model have no other).
    `packing`: responses of several prompts share a row without padding, up to `max_tokens`; a family that cannot pads,
    and the log says why. `gradient_checkpointing` computes activations twice to keep fewer. `use_liger_kernel`: the
    loss over large vocabularies by liger-kernel, "auto" where it is installed and the policy is on CUDA.
    """

    learning_rate: Rate = 1e-4
    num_train_epochs: Count = 2
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine", "wsd"] = "constant"
    warmup_steps: CountOrOff = 0
    decay_share: PositiveShare = 0.2
    min_lr_rate: Share = 0.0
    max_steps: Annotated[int, Field(ge=-1)] = -1
    per_device_train_batch_size: Count = 64
    gradient_accumulation_steps: Count = 1
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0
    adam_beta1: Momentum = 0.9
    adam_beta2: Momentum = 0.98
    bf16: bool = False
    max_tokens: CountOrOff = 0
    packing: bool = False
    gradient_checkpointing: bool = False
    use_liger_kernel: AutoOrBool = "auto"

    @field_validator("max_steps")
    @classmethod
    def _schedule_has_an_end(cls, value: int, info: ValidationInfo) -> int:
        """A schedule that decays needs to know where it ends."""
        kind = info.data.get("lr_scheduler_type")
        if kind in ("linear", "cosine", "wsd") and value < 1:
            raise ValueError(f"1 or more with lr_scheduler_type={kind}")
        return value

    @field_validator("packing")
    @classmethod
    def _rows_have_an_end(cls, value: bool, info: ValidationInfo) -> bool:
        """Without padding nothing but a number of tokens bounds a row."""
        if value and info.data.get("max_tokens") == 0:
            raise ValueError("train.packing", True, "false, or train.max_tokens of 1 or more, the tokens of a row")
        return value


@section
class EvolveConfig:
    """The loop. `method`: a row of evolve/methods.py. `interval`: the labelled problems of one iteration, as a share
    (0.25, 1.0) or a number (200). `passes` over the labelled problems end it, or `iterations` (-1: the passes decide).

    Counting in passes lets methods of different intervals see the same amount of data.
    """

    method: Literal["sft", "star", "iterative_rft", "rest_em", "continuous"] = "continuous"
    interval: PositiveShare | Annotated[int, Field(ge=2)] = 0.25
    passes: Rate = 2.0
    iterations: Annotated[int, Field(ge=-1)] = -1

    @field_validator("interval", mode="before")
    @classmethod
    def _one_is_ambiguous(cls, value: object) -> object:
        """A bare 1 could be one problem or all of them."""
        if type(value) is int and value == 1:
            raise ValueError("1.0 for all problems, a share below it, or 2 problems or more")
        return value

    @field_validator("iterations")
    @classmethod
    def _none_is_no_evolution(cls, value: int) -> int:
        """Leaving the stage out is how not to evolve."""
        if value == 0:
            raise ValueError("1 or more, or -1: evolve.passes decides; without evolution, leave evolve out of stages")
        return value

    def problems_of(self, labelled: int) -> int:
        """Problems of an iteration, of so many labelled ones."""
        wanted = self.interval if isinstance(self.interval, int) else max(1, round(self.interval * labelled))
        return min(wanted, labelled)

    def iterations_of(self, labelled: int) -> int:
        """Iterations over so many labelled problems: as given, or as many as the passes take."""
        if self.iterations > 0:
            return self.iterations
        if not labelled:
            return 0
        # A share that does not divide the set ends each pass with a smaller iteration.
        parts = -(-labelled // self.problems_of(labelled))
        return max(1, round(self.passes * parts))


BENCHMARK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TAKEN_NAMES = ("train", "unlabelled", "warmup", "validation", "test", "ood", "mean")
"""What counts of rows and the tables of an evaluation call by these names already."""


@section
class EvaluateConfig:
    """What is measured after every iteration: greedy accuracy, and Pass@K from `pass_at_k_n` samples a problem.

    `reward_pass_at_k` is the K of Reward-Pass@K: how many of the best-scored samples count. `temperature` is that of
    all samples that measure.

    The stage evaluate measures the test problems, those out of distribution and the `benchmarks`: names of your own for
    problem sets written as those of the section data are ("mathvista:AI4Math/MathVista#testmini"). Greedy, and with `n`
    samples a problem beside it (0: none). `limit` problems of each benchmark (0: all of them).
    """

    pass_at_k_n: Count = 8
    pass_at_k: Count = 8
    reward_pass_at_k: Count = 2
    temperature: Rate = 1.0
    benchmarks: dict[str, Text] = Field(default_factory=dict)
    n: CountOrOff = 0
    limit: CountOrOff = 0

    @field_validator("benchmarks")
    @classmethod
    def _names_of_files(cls, value: dict[str, str]) -> dict[str, str]:
        """Files are called by the names, in whatever case a file system keeps."""
        for name in value:
            if BENCHMARK_NAME.fullmatch(name) is None:
                raise ValueError("names of 1 to 64 letters, digits, '.', '_' and '-' that begin with a letter or digit")
            if name.casefold() in TAKEN_NAMES:
                raise ValueError(f"names other than {', '.join(TAKEN_NAMES)}, which are taken")
        if len({name.casefold() for name in value}) < len(value):
            raise ValueError("names that differ in more than upper and lower case")
        return value

    @field_validator("pass_at_k", "reward_pass_at_k")
    @classmethod
    def _enough_samples(cls, value: int, info: ValidationInfo) -> int:
        """Pass@K and Reward-Pass@K need at least K samples."""
        samples = info.data.get("pass_at_k_n", value)
        if value > samples:
            raise ValueError(f"at most evaluate.pass_at_k_n={samples}")
        return value


MOST_ARMS = 1000


@section
class TemperatureConfig:
    """How the sampling temperature follows the policy (paper section 4).

    "fixed" stays at `rollout.temperature`, where the others begin. Every `every` iterations "grid" draws `n` responses
    at each of `low`, `low + step` .. `high` to `problems` validation problems (0: all) and takes the best by `metric`;
    "racing" stops sampling what is clearly worse; "continuous" fits a smooth model over temperature and time. The last
    two draw at most `budget` of the grid's samples. Racing keeps the present temperature unless another is ahead by
    `margin` standard errors (1.96 would be its 95% interval). `k` is that of the metric (0: all n); `balance_target`
    the n* of B-STaR's balance score.
    """

    controller: Literal["fixed", "grid", "racing", "continuous"] = "racing"
    metric: Literal["reward_pass_at_k", "pass_at_k", "balance"] = "reward_pass_at_k"
    every: Count = 2
    low: Annotated[float, Field(ge=0.01)] = 0.3
    high: Rate = 1.6
    step: Rate = 0.1
    n: Count = 8
    k: CountOrOff = 2
    problems: CountOrOff = 128
    budget: PositiveShare = 0.33
    margin: NonNegative = 1.0
    balance_target: Count = 2

    @field_validator("high")
    @classmethod
    def _bounds_in_order(cls, value: float, info: ValidationInfo) -> float:
        """A range begins at its lower end."""
        low = info.data.get("low", value)
        if value <= low:
            raise ValueError(f"above temperature.low={low}")
        return value

    @field_validator("step")
    @classmethod
    def _step_fits(cls, value: float, info: ValidationInfo) -> float:
        """A grid has two arms or more, and not so many that nobody could sample them."""
        width = info.data["high"] - info.data["low"] if {"low", "high"} <= set(info.data) else value
        if not width / (MOST_ARMS - 1) <= value <= width + 1e-9:
            least = width / (MOST_ARMS - 1)
            raise ValueError(
                f"{least:.3g} to {width:g}: 2 to {MOST_ARMS} temperatures from temperature.low to temperature.high"
            )
        return value

    @field_validator("k")
    @classmethod
    def _enough_samples(cls, value: int, info: ValidationInfo) -> int:
        """The best k of n."""
        samples = info.data.get("n", value)
        if value > samples:
            raise ValueError(f"at most temperature.n={samples}")
        return value

    @property
    def grid(self) -> tuple[float, ...]:
        """The temperatures of the grid, ascending."""
        steps = int((self.high - self.low) / self.step + 1e-9)
        return tuple(round(self.low + index * self.step, 6) for index in range(steps + 1))

    @property
    def arms(self) -> int:
        """Temperatures that a problem may meet in one sweep: the present one may lie off the grid."""
        return {"fixed": 0, "grid": len(self.grid)}.get(self.controller, len(self.grid) + 1)

    @property
    def rows(self) -> int:
        """Responses to one problem that a sweep draws together."""
        return self.arms * self.n


@section
class PromptsConfig:
    """How problems are put to the policy, wherever it is sampled, trained, scored or measured: in `template`, which has
    the place {question} ({{ and }} stand for braces), behind the system message `system` ("": none).

    Which problems are sampled (paper section 3.4): the labelled ones, and, from the share `mix_in_from` of the
    iterations on, also the unlabelled ones.

    Their reference answers are the true ones ("oracle") or pseudo-labels ("pseudo"): what the responses vote for,
    "weighted" by score or by "majority". A pseudo-label counts when its share of the vote reaches `min_share` and its
    lead `min_margin`.
    """

    system: str = ""
    template: Text = PLAIN
    unlabelled: Literal["none", "oracle", "pseudo"] = "none"
    mix_in_from: Share = 0.0
    vote: Literal["weighted", "majority"] = "weighted"
    min_share: Share = 0.0
    min_margin: Share = 0.0

    @field_validator("system")
    @classmethod
    def _places_no_image(cls, value: str) -> str:
        """Images are a problem's."""
        refuse_images(value)
        return value

    @field_validator("template")
    @classmethod
    def _has_the_question(cls, value: str) -> str:
        """A prompt asks."""
        check_template(value, ("question",))
        return value

    @property
    def needs_scores(self) -> bool:
        """Whether the vote needs a process reward model."""
        return self.unlabelled == "pseudo" and self.vote == "weighted"
