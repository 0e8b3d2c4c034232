"""How well step scores tell right steps from wrong ones.

Scores and labels come as one list a response, one number a step; a label in [0, 1] is the step's share of completions
that end right, or a verdict of 0 or 1. A step is positive when its label is above `positive_above`: 0, the default, is
"any completion ended right". It is predicted positive when its score is at least the threshold. A response is erroneous
when one of its steps is negative, else correct.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import roc_auc_score

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessBench:
    """ProcessBench's measure (arXiv 2412.06559): `f1` is the harmonic mean of the two accuracies.

    `error_accuracy` is the share of the `erroneous` responses whose first predicted-negative step is the first negative
    one, `correct_accuracy` the share of the `correct` ones without a predicted-negative step. None where there are none
    of a kind; `f1` is None then as well.
    """

    f1: float | None
    error_accuracy: float | None
    correct_accuracy: float | None
    erroneous: int
    correct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What a labelled set holds: steps, positive and negative ones; responses, erroneous ones.

    `first_errors[i]` counts the responses whose first negative step is step i; it ends with the last that occurs.
    """

    steps: int
    positive: int
    negative: int
    responses: int
    erroneous: int
    first_errors: tuple[int, ...]


def step_auc(scores: Rows, labels: Rows, positive_above: float = 0.0) -> float | None:
    """The area under the ROC curve over all steps; None unless there are positive and negative ones."""
    scores, marks = _checked(scores, labels, positive_above)
    positive = [mark for row in marks for mark in row]
    if len(set(positive)) < 2:
        return None
    return float(roc_auc_score(positive, [score for row in scores for score in row]))


def process_bench_f1(scores: Rows, labels: Rows, threshold: float, positive_above: float = 0.0) -> ProcessBench:
    """ProcessBench's F1 with its two accuracies, at a threshold."""
    scores, marks = _checked(scores, labels, positive_above)
    hits, counts = [0, 0], [0, 0]
    for row, positive in zip(scores, marks, strict=True):
        error = _first_error(positive)
        counts[error is None] += 1
        hits[error is None] += _first_error([score >= threshold for score in row]) == error
    return _process_bench(hits, counts)


def macro_f1(scores: Rows, labels: Rows, threshold: float, positive_above: float = 0.0) -> float:
    """VisualProcessBench's measure: the mean of the F1 of positive steps and that of negative steps, over all steps.

    The F1 of a kind that neither occurs nor is predicted is 0. Steps that are neither should be left out beforehand.
    """
    scores, marks = _checked(scores, labels, positive_above)
    hits, mistakes = [0, 0], 0
    for row, positive in zip(scores, marks, strict=True):
        for score, mark in zip(row, positive, strict=True):
            if mark == (score >= threshold):
                hits[mark] += 1
            else:
                mistakes += 1
    return sum(2 * hit / (2 * hit + mistakes) if hit else 0.0 for hit in hits) / 2


def best_threshold(scores: Rows, labels: Rows, positive_above: float = 0.0) -> float | None:
    """The threshold of the highest ProcessBench F1 on the data given; None when a kind of response is absent.

    The F1 changes at scores only: the answer is the middle of the first interval between them that is best. Choose it
    on other data than it is reported on.
    """
    scores, marks = _checked(scores, labels, positive_above)
    # A response is judged well by exactly the thresholds in (low, high]. Erroneous ones first, then correct ones.
    lows: tuple[list[float], list[float]] = ([], [])
    highs: tuple[list[float], list[float]] = ([], [])
    counts = [0, 0]
    for row, positive in zip(scores, marks, strict=True):
        error = _first_error(positive)
        low = -math.inf if error is None else row[error]
        high = min(row[:error], default=math.inf)
        counts[error is None] += 1
        if low < high:
            lows[error is None].append(low)
            highs[error is None].append(high)
    if 0 in counts:
        return None
    edges = sorted({edge for some in (*lows, *highs) for edge in some if math.isfinite(edge)})
    for some in (*lows, *highs):
        some.sort()
    best, choice = -1.0, None
    for low, high in zip([None, *edges], [*edges, None], strict=True):
        threshold = _between(low, high)
        hits = [bisect_left(lows[kind], threshold) - bisect_left(highs[kind], threshold) for kind in (0, 1)]
        f1 = _process_bench(hits, counts).f1
        if f1 > best:
            best, choice = f1, threshold
    return choice


def balance(labels: Rows, positive_above: float = 0.0) -> Balance:
    """The balance of a labelled set."""
    _, marks = _checked([[0.0] * len(row) for row in labels], labels, positive_above)
    errors = [error for error in map(_first_error, marks) if error is not None]
    steps, positive = sum(map(len, marks)), sum(map(sum, marks))
    return Balance(
        steps=steps,
        positive=positive,
        negative=steps - positive,
        responses=len(marks),
        erroneous=len(errors),
        first_errors=tuple(errors.count(step) for step in range(max(errors, default=-1) + 1)),
    )


def _first_error(positive: list[bool]) -> int | None:
    """The first negative step; None when there is none."""
    return positive.index(False) if False in positive else None


def _process_bench(hits: Sequence[int], counts: Sequence[int]) -> ProcessBench:
    """The measure from the hits among, and the numbers of, erroneous and correct responses."""
    error, correct = (hit / count if count else None for hit, count in zip(hits, counts, strict=True))
    f1 = None
    if error is not None and correct is not None:
        f1 = 2 * error * correct / (error + correct) if error + correct else 0.0
    return ProcessBench(f1=f1, error_accuracy=error, correct_accuracy=correct, erroneous=counts[0], correct=counts[1])


def _between(low: float | None, high: float | None) -> float:
    """A threshold in (low, high]: the middle where both are given, else `high`, else the next number above `low`."""
    if low is None or high is None:
        return math.nextafter(low, math.inf) if high is None else high
    middle = low + (high - low) / 2
    return middle if low < middle else high


def _checked(scores: Rows, labels: Rows, positive_above: float) -> tuple[list[list[float]], list[list[bool]]]:
    """Scores as plain numbers, and which steps are positive. ValueError names a response or step that is amiss."""
    if len(scores) != len(labels):
        raise ValueError(f"scores of {len(scores)} responses, labels of {len(labels)}; allowed: as many")
    for i, (row, marks) in enumerate(zip(scores, labels, strict=True)):
        if not 1 <= len(row) == len(marks):
            raise ValueError(f"response {i}: {len(row)} scores, {len(marks)} labels; allowed: one each a step")
        for step, (score, label) in enumerate(zip(row, marks, strict=True)):
            if score is None or not math.isfinite(score):
                raise ValueError(f"response {i}, step {step}: score={score}; allowed: a finite number")
            if label is None or not 0.0 <= label <= 1.0:
                raise ValueError(f"response {i}, step {step}: label={label}; allowed: 0 to 1")
    # Plain numbers: numpy would compare a float32 with a threshold that it has rounded.
    return [[float(s) for s in row] for row in scores], [[bool(m > positive_above) for m in row] for row in labels]
