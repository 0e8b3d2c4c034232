"""Step metrics: small sets by hand, scikit-learn, and brute force over thresholds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from mstar_engine.reward import step_metrics
from mstar_engine.reward.step_metrics import Balance, ProcessBench

SCORES = [[0.9, 0.8, 0.2], [0.7, 0.3], [0.9, 0.6], [0.4]]
LABELS = [[1.0, 0.5, 0.0], [0.0, 0.0], [1.0, 0.125], [0.25]]


def flat(rows) -> list[float]:
    return [value for row in rows for value in row]


def test_auc_by_hand():
    # Positive 0.9 0.8 0.9 0.6 0.4, negative 0.2 0.7 0.3: of 15 pairs, 0.7 beats 0.6 and 0.4.
    assert step_metrics.step_auc(SCORES, LABELS) == pytest.approx(13 / 15)
    assert step_metrics.step_auc([[0.1, 0.9]], [[0, 1]]) == 1.0
    assert step_metrics.step_auc([[0.9, 0.1]], [[0, 1]]) == 0.0
    assert step_metrics.step_auc([[0.5, 0.5]], [[0, 1]]) == 0.5
    assert step_metrics.step_auc([[0.5, 0.5]], [[1, 1]]) is None
    assert step_metrics.step_auc([[0.5, 0.5]], [[0, 0]]) is None
    assert step_metrics.step_auc([], []) is None


def test_process_bench_by_hand():
    def measure(threshold):
        result = step_metrics.process_bench_f1(SCORES, LABELS, threshold)
        assert (result.erroneous, result.correct) == (2, 2)
        return result.error_accuracy, result.correct_accuracy, result.f1

    assert measure(0.0) == (0.0, 1.0, 0.0)  # nothing is predicted negative
    assert measure(0.2) == (0.0, 1.0, 0.0)  # a score at the threshold is positive
    assert measure(0.3) == (0.5, 1.0, pytest.approx(2 / 3))
    assert measure(0.4) == (0.5, 1.0, pytest.approx(2 / 3))  # 0.3 is an error, but not the first
    assert measure(0.5) == (0.5, 0.5, 0.5)
    assert measure(0.75) == (1.0, 0.0, 0.0)
    assert measure(1.0) == (0.5, 0.0, 0.0)


def test_every_way_to_judge_two_steps():
    for right, guess in itertools.product(itertools.product([0, 1], repeat=2), repeat=2):
        result = step_metrics.process_bench_f1([guess, [1]], [right, [1]], 0.5)
        first = {(0, 0): 0, (0, 1): 0, (1, 0): 1, (1, 1): -1}
        hit = first[guess] == first[right]
        if right == (1, 1):
            assert result == ProcessBench(
                f1=None, error_accuracy=None, correct_accuracy=(1 + hit) / 2, erroneous=0, correct=2
            )
        else:
            assert result == ProcessBench(
                f1=float(hit), error_accuracy=float(hit), correct_accuracy=1.0, erroneous=1, correct=1
            )


def test_kinds_that_are_absent():
    nothing = ProcessBench(f1=None, error_accuracy=None, correct_accuracy=None, erroneous=0, correct=0)
    assert step_metrics.process_bench_f1([], [], 0.5) == nothing
    only_errors = step_metrics.process_bench_f1([[0.1]], [[0.0]], 0.5)
    assert (only_errors.f1, only_errors.error_accuracy, only_errors.correct_accuracy) == (None, 1.0, None)
    assert step_metrics.best_threshold([[0.1]], [[0.0]]) is step_metrics.best_threshold([[0.1]], [[1.0]]) is None
    assert step_metrics.macro_f1([], [], 0.5) == 0.0


def test_macro_f1_by_hand():
    # At 0.5: of 5 positive steps 4 are found, of 3 negative 2.
    assert step_metrics.macro_f1(SCORES, LABELS, 0.5) == pytest.approx((8 / 10 + 4 / 6) / 2)
    assert step_metrics.macro_f1([[0.9, 0.1]], [[1, 0]], 0.5) == 1.0
    assert step_metrics.macro_f1([[0.1, 0.9]], [[1, 0]], 0.5) == 0.0
    assert step_metrics.macro_f1([[0.9, 0.9]], [[1, 1]], 0.5) == 0.5


def test_best_threshold_by_hand():
    # At 0.3 and 0.4 the F1 is 2/3; nothing is better. The first such interval is (0.2, 0.4].
    assert step_metrics.best_threshold(SCORES, LABELS) == pytest.approx(0.3)
    assert step_metrics.best_threshold([[0.8], [0.2]], [[1], [0]]) == pytest.approx(0.5)
    assert step_metrics.best_threshold([[0.2], [0.8]], [[1], [0]]) == 0.2  # F1 is 0 everywhere: the first
    # No number lies between: the threshold is the correct response's score.
    above = math.nextafter(0.5, 1)
    assert step_metrics.best_threshold([[above], [0.5]], [[1], [0]]) == above


def test_positive_above_hardens_labels():
    assert step_metrics.balance(LABELS).positive == 5
    assert step_metrics.balance(LABELS, 0.25).positive == 3
    assert step_metrics.balance(LABELS, 0.5).positive == 2
    assert step_metrics.step_auc(SCORES, LABELS, 0.5) == 1.0
    assert step_metrics.process_bench_f1(SCORES, LABELS, 0.5, 0.25).correct == 0
    assert step_metrics.macro_f1(SCORES, LABELS, 0.85, 0.5) == 1.0
    assert step_metrics.best_threshold(SCORES, LABELS, 0.25) is None


def test_balance_by_hand():
    assert step_metrics.balance(LABELS) == Balance(
        steps=8, positive=5, negative=3, responses=4, erroneous=2, first_errors=(1, 0, 1)
    )
    assert step_metrics.balance([[1], [0.5, 1]]).first_errors == ()
    assert step_metrics.balance([]) == Balance(
        steps=0, positive=0, negative=0, responses=0, erroneous=0, first_errors=()
    )


STEP = st.tuples(st.integers(0, 8).map(lambda i: i / 8) | st.floats(0, 1), st.sampled_from([0.0, 0.25, 1.0]))
SETS = st.lists(st.lists(STEP, min_size=1, max_size=5), min_size=1, max_size=8).map(
    lambda rows: ([[s for s, _ in row] for row in rows], [[m for _, m in row] for row in rows])
)


@given(SETS, st.floats(0, 1), st.sampled_from([0.0, 0.25]))
@settings(deadline=None)
def test_against_scikit_learn(rows, threshold, above):
    scores, labels = rows
    positive = [label > above for label in flat(labels)]
    predicted = [score >= threshold for score in flat(scores)]
    expected = f1_score(positive, predicted, labels=[False, True], average="macro", zero_division=0)
    assert step_metrics.macro_f1(scores, labels, threshold, above) == pytest.approx(expected)
    auc = step_metrics.step_auc(scores, labels, above)
    if len(set(positive)) == 2:
        assert auc == roc_auc_score(positive, flat(scores))
        pairs = [
            (a > b) + (a == b) / 2
            for a, p in zip(flat(scores), positive)
            for b, q in zip(flat(scores), positive)
            if p and not q
        ]
        assert auc == pytest.approx(np.mean(pairs))
    else:
        assert auc is None


@given(SETS, st.sampled_from([0.0, 0.25]))
@settings(deadline=None)
def test_no_threshold_beats_the_best(rows, above):
    scores, labels = rows
    best = step_metrics.best_threshold(scores, labels, above)
    measured = step_metrics.process_bench_f1(scores, labels, 0.5, above)
    if measured.f1 is None:
        assert best is None
        return
    # Every behaviour there is: at each score, and above all of them.
    every = [*flat(scores), 2.0]
    values = [step_metrics.process_bench_f1(scores, labels, threshold, above).f1 for threshold in every]
    assert step_metrics.process_bench_f1(scores, labels, best, above).f1 == max(values)


@given(SETS)
@settings(deadline=None)
def test_arrays_are_lists(rows):
    scores, labels = ([np.array(row, np.float32) for row in part] for part in rows)
    plain = [[float(score) for score in row] for row in scores]
    best = step_metrics.best_threshold(scores, labels)
    assert best == step_metrics.best_threshold(plain, rows[1])
    threshold = 0.5 if best is None else best
    result = step_metrics.process_bench_f1(scores, labels, threshold)
    assert result == step_metrics.process_bench_f1(plain, rows[1], threshold)
    assert step_metrics.macro_f1(scores, labels, threshold) == step_metrics.macro_f1(plain, rows[1], threshold)
    counts = step_metrics.balance(labels)
    assert counts == step_metrics.balance(rows[1])
    assert (counts.erroneous, counts.responses - counts.erroneous) == (result.erroneous, result.correct)
    assert sum(counts.first_errors) == counts.erroneous and counts.positive + counts.negative == counts.steps


def test_refusals():
    for scores, labels, message in (
        ([[0.5]], [], "scores of 1 responses, labels of 0"),
        ([[0.5], []], [[1], []], "response 1: 0 scores, 0 labels"),
        ([[0.5]], [[1, 1]], "response 0: 1 scores, 2 labels"),
        ([[0.5, math.nan]], [[1, 1]], "response 0, step 1: score=nan"),
        ([[None]], [[1]], "response 0, step 0: score=None"),
        ([[0.5]], [[1.5]], "response 0, step 0: label=1.5"),
        ([[0.5]], [[math.nan]], "response 0, step 0: label=nan"),
    ):
        for measure in (step_metrics.step_auc, step_metrics.best_threshold):
            with pytest.raises(ValueError, match=message):
                measure(scores, labels)
    with pytest.raises(ValueError, match="response 0, step 0: label=2; allowed: 0 to 1"):
        step_metrics.balance([[2]])
    with pytest.raises(ValueError, match="response 0, step 0: label=nan"):
        step_metrics.balance([[math.nan]])


def test_a_threshold_is_not_rounded_to_the_scores():
    # The nearest float32 is below 0.7; numpy would compare it with 0.7 in float32 and call them equal.
    assert step_metrics.macro_f1([np.array([0.7], np.float32)], [[0.0]], 0.7) == 0.5
