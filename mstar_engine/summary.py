"""The outcome of a run in one small record: what `summary.json` holds.

A run replaces it after every iteration, so it is whole at any moment; what has not been measured yet is None or absent.
Every accuracy is an Estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mstar_engine.types import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierSummary:
    """Accuracy when one answer is taken from K samples a problem.

    `best_of_n` takes that of the response with the highest score, `weighted` that with the largest sum of scores,
    `majority` that with the most responses, which asks no reward model.
    """

    best_of_n: Estimate
    weighted: Estimate
    majority: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCurve:
    """What a controller believes of its metric at `temperatures`: mean and 95% interval."""

    temperatures: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSummary:
    """One choice of the sampling temperature: `metric` (with its `k`) at each of `temperatures`, in `values`.

    `present` was in force before, `chosen` after. An arm that was dropped early has fewer items than the others.
    `drawn` responses were sampled in all, from `prefill_tokens` of prompts; `model` is there when a smooth model chose.
    """

    controller: str
    metric: str
    k: int
    present: float
    chosen: float
    temperatures: tuple[float, ...]
    values: tuple[Estimate, ...]
    drawn: int
    prefill_tokens: int
    seconds: float
    model: ModelCurve | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudoSummary:
    """Pseudo-labels of one iteration: unlabelled `problems`, those with a `voted` answer, those that the confidence
    gate `passed`; of these `accuracy` is the share of right ones, known when the true answers are."""

    problems: int
    voted: int
    passed: int
    accuracy: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatexSummary:
    """Comparisons of LaTeX answers by worker processes: all, those stopped at the time limit, those whose worker died.

    What is counted last when a process is killed is not in it.
    """

    comparisons: int = 0
    timeouts: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiftSummary:
    """What a warm-up drew with the answers before the policy: responses `sampled` to `problems`, the `right` ones among
    them and the `kept` ones, which it learned from; `fates` says how many responses met which end ("kept" among them).

    `solved` problems had a response that was fit to learn from; `without_gold` were left out for want of an answer.
    """

    problems: int
    without_gold: int
    solved: int
    sampled: int
    right: int
    kept: int
    fates: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupSummary:
    """The warmed-up policy: where the evolution starts.

    `sift` is there when it learned from responses of its own.

    `greedy` and `ood_greedy` on the test problems, like those at the end; the others on the validation problems, like
    those of the iterations. `dynamics` as in IterationSummary.
    """

    greedy: Estimate
    ood_greedy: Estimate | None = None
    validation_greedy: Estimate | None = None
    pass_at_k: Estimate | None = None
    reward_pass_at_2: Estimate | None = None
    verifier: dict[int, VerifierSummary] | None = None
    dynamics: dict[str, Estimate] = field(default_factory=dict)
    sift: SiftSummary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationSummary:
    """One iteration: accuracies on the validation problems, responses `sampled`, `correct` and `kept`, wall-clock
    `seconds`.

    `reward_pass_at_2` is the share of problems with a right response among the 2 of the highest score, the paper's
    number; `verifier` has an entry for each number of samples K. Both are None without a process reward model.
    `reasons` counts the verdicts on the sampled responses by their reason; empty in summaries of earlier versions.
    `dynamics` holds every metric of `evolve.dynamics.measure` by name, in it `reward_pass_at_k` at the configured K;
    empty in summaries of earlier versions. `sweep` is there when the temperature was chosen anew before this iteration,
    `pseudo` when it met unlabelled problems. `correct` is by the reference answers in force, pseudo-labels included.
    """

    iteration: int
    greedy: Estimate
    pass_at_k: Estimate | None = None
    reward_pass_at_2: Estimate | None = None
    verifier: dict[int, VerifierSummary] | None = None
    kept: int
    sampled: int
    correct: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    latex: LatexSummary | None = None
    problems: int | None = None
    temperature: float
    tokens_per_second: float | None = None
    seconds: float
    dynamics: dict[str, Estimate] = field(default_factory=dict)
    sweep: SweepSummary | None = None
    pseudo: PseudoSummary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalSummary:
    """The evolved policy on the test problems, and on those outside the training distribution."""

    greedy: Estimate
    ood_greedy: Estimate | None = None


ALL = "ALL"
"""The category that holds every problem of a set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSummary:
    """One problem set that was evaluated: accuracies by category (`ALL` last), then by metric.

    "greedy"; "greedy_published", the same responses by the rules of `published`, where these can judge any problem
    (the `unpublished` that they cannot judge keep their verdicts); of n samples "pass_at_1" (their mean), and of
    several "majority", by step scores "weighted", "best_of_n" and "reward_pass_at_2", and for K = 2, 4, 8 .. n
    "pass_at_K" (the first K) and "unbiased_pass_at_K".
    """

    problems: int
    published: str = ""
    unpublished: int = 0
    metrics: dict[str, dict[str, Estimate]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """What the evaluate stage measured, on the "base" policy (the given checkpoint), the one after "warmup", or the
    "final" one, after `iteration` iterations: greedy, and with `n` samples a problem at `temperature`.

    `mean`: by metric that all have, the mean of what the benchmarks `averaged` reach on ALL problems. The run's own
    sets are not among these.
    """

    policy: str
    iteration: int = 0
    n: int = 0
    temperature: float = 1.0
    benchmarks: dict[str, BenchmarkSummary] = field(default_factory=dict)
    averaged: tuple[str, ...] = ()
    mean: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutSummary:
    """The process reward model on `steps` that it did not learn from, of which the share `balance` is positive.

    `auc` is None when all of them are of one kind. The others judge a step positive from `threshold` on.
    """

    steps: int
    balance: float
    auc: float | None = None
    f1: float | None
    accuracy_on_erroneous: float | None
    accuracy_on_correct: float | None
    macro_f1: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationSummary:
    """What the step labels cost.

    `mode` is "hard", "soft" or "binary"; `completions` were asked for and `drawn` in all, from prefixes of
    `prefill_tokens` into `decode_tokens`, in wall-clock `seconds`.
    """

    mode: str
    completions: int
    drawn: int
    prefill_tokens: int
    decode_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrmSummary:
    """The process reward model, which learned from `labels` steps of `responses` to `problems`.

    `head` is "label_tokens", "scalar" or "two_class", `targets` "hard" or "soft"; `balance` is the share of positive
    steps.
    """

    model: str
    head: str
    targets: str
    labels: int
    problems: int
    responses: int
    balance: float
    held_out: HeldOutSummary
    annotation: AnnotationSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole run; `prm` is None without a process reward model, `latex` over all stages, `seconds` by stage."""

    warmup: WarmupSummary | None = None
    prm: PrmSummary | None = None
    evolve: tuple[IterationSummary, ...] = ()
    final: FinalSummary | None = None
    latex: LatexSummary | None = None
    evaluation: EvaluationSummary | None = None
    seconds: dict[str, float] = field(default_factory=dict)


_SUMMARY = TypeAdapter(Summary)


def read_summary(path: Path) -> Summary:
    """The summary in a JSON file, keys of later versions ignored. ValueError names the file and the first bad key."""
    try:
        return _SUMMARY.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path}: {where}: {first['msg']}") from None
