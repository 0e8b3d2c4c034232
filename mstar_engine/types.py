"""The records that flow through the engine, defined once.

Problem -> Response -> Group -> (the same with verdicts, step scores, selection) -> TrainingExample. Records are
frozen: a stage returns new ones (`dataclasses.replace`), so a journalled record is what the next stage saw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mstar_engine.answer_type import AnswerType

if TYPE_CHECKING:
    from PIL.Image import Image

ORACLE = "oracle"
PSEUDO = "pseudo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question about one or more images.

    `id` is unique within a run: it keys the journal and, hashed, every random draw made for the problem.
    `images` are PIL images or paths, in the order in which the prompt shows them; empty for a text-only problem.
    `gold` is the reference answer, None when unlabelled. `source` names the data set or question family.
    `response` is a demonstration (warm-up data only).
    `label` says where `gold` comes from: "gold" (the data), "oracle" (the true answer of a problem that counts as
    unlabelled) or "pseudo" (a vote of responses; None when they do not agree enough). `truth` is the true answer beside
    a pseudo-label, where it is known: to measure pseudo-labels by, and nothing that learns may read it.
    `answer_type` says how answers are read and compared; None: by exact match.
    """

    id: str
    question: str
    images: tuple[Image | Path | str, ...] = ()
    gold: str | None = None
    source: str = ""
    response: str | None = None
    label: str = "gold"
    truth: str | None = None
    answer_type: AnswerType | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """One sampled response of the policy.

    `token_ids` int32 [length], the end-of-turn token included when the policy wrote it. The log-probabilities and
    the entropy are float32 [length]: `logprobs` at temperature 1, `scaled_logprobs` after the temperature,
    `filtered_logprobs` after top-k, top-p and min-p as well; `entropy` in nats, at temperature 1.
    `finish_reason` is "stop" (an end token), "length" (max_tokens) or "abort". `reason` says why `correct` is what it
    is, in a word or two of `reward/verdict.py`; None where nobody judged.
    """

    sample: int
    token_ids: np.ndarray
    text: str
    logprobs: np.ndarray
    scaled_logprobs: np.ndarray
    filtered_logprobs: np.ndarray
    entropy: np.ndarray
    finish_reason: str
    temperature: float
    answer: str | None = None
    correct: bool | None = None
    reason: str | None = None
    step_scores: tuple[float, ...] | None = None
    score: float | None = None
    selected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A problem and its responses, in row order. `prompt_length` counts tokens, image tokens included."""

    problem: Problem
    responses: tuple[Response, ...]
    prompt_length: int


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """What was found behind one step: `n` completions drawn (0: none was needed), `correct` of them right."""

    n: int
    correct: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledSolution:
    """A response with a label for each of its steps.

    `step_ends` exclusive token ends within `response_ids`; `labels` in [0, 1], the wanted step scores; `mc` the
    completions that they come from, None where labels come from elsewhere.
    """

    problem: Problem
    sample: int
    response_ids: np.ndarray
    text: str
    correct: bool
    prompt_length: int
    step_ends: tuple[int, ...]
    labels: tuple[float, ...]
    mc: tuple[MonteCarlo, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingExample:
    """A problem and one response to imitate; the loss covers the response tokens only."""

    problem: Problem
    response_ids: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured quantity, most often a share, with its 95% interval over `items`: the form in which all are stored."""

    value: float
    items: int
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw responses. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off.

    `first_sample` numbers the samples of a group from there, so that a later call can add new ones to the same problem.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    first_sample: int = 0
    stop_token_ids: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse values that no sampler can honour."""
        for key, allowed, ok in (
            ("n", "1 or more", self.n >= 1),
            ("temperature", "0 or more, finite", 0.0 <= self.temperature < float("inf")),
            ("top_k", "0 (off) or more", self.top_k >= 0),
            ("top_p", "above 0 and at most 1", 0.0 < self.top_p <= 1.0),
            ("min_p", "0 to 1", 0.0 <= self.min_p <= 1.0),
            ("max_tokens", "1 or more", self.max_tokens >= 1),
            ("seed", "0 or more, below 2**63", 0 <= self.seed < 2**63),
            ("first_sample", "0 or more", self.first_sample >= 0),
        ):
            if not ok:
                raise ValueError(f"SamplingParams: {key}={getattr(self, key)}; allowed: {allowed}")
