"""Sweeps on the real tiny model: what is measured, what it costs, and that nothing is sampled twice."""

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.config_parse import load_config
from mstar_engine.data.digits import digits_problems
from mstar_engine.evolve import dynamics
from mstar_engine.evolve.sweep import Sweep
from mstar_engine.evolve.sweep_metric import Outcomes, SweepMetric, outcomes_of, text_key
from mstar_engine.evolve.temperature import build_controller
from mstar_engine.journal import plain
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward import answers
from mstar_engine.reward.answers import Verdict, judge
from mstar_engine.reward.forms import FORMS
from mstar_engine.reward.head import RewardHead, fresh_layers
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Group, Problem, Response, SamplingParams

PARAMS = SamplingParams(n=4, max_tokens=12, seed=3)
REWARD_PASS = SweepMetric(kind="reward_pass_at_k", k=1, target=2, threshold=0.5)
ARMS = (0.3, 0.9, 1.6)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge by whom an untrained policy succeeds: a response is right by the parity of its text's checksum."""

    def verdict(response: Response, gold: str) -> Verdict:
        return Verdict(zlib.crc32(response.text.encode()) % 2 == 0, response.text, "checksum")

    monkeypatch.setattr(answers, "judge_response", verdict)


@pytest.fixture(scope="module")
def engine() -> RolloutEngine:
    return RolloutEngine(*build_tiny(0), max_rows=24)


@pytest.fixture(scope="module")
def prm() -> ProcessRewardModel:
    """A model of random weights that scores every response differently."""
    model, processor = build_tiny(1)
    layers = fresh_layers("scalar", 128, seed=1, dtype=torch.float32, device=torch.device("cpu"))
    head = RewardHead("scalar", output=model.get_output_embeddings(), label_ids=(20, 21), layers=layers)
    return ProcessRewardModel(model, processor, head, FORMS["mstar_scalar"])


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return digits_problems("validation", 5, 0)


def sweep_of(engine, problems, folder: Path, metric: SweepMetric = REWARD_PASS, prm=None) -> Sweep:
    return Sweep(engine, problems, PARAMS, metric, folder=folder, number=1, prm=prm)


def test_a_sweep_is_what_separate_calls_measure(engine, problems, prm, tmp_path: Path) -> None:
    """Every metric, against the dynamics of one engine call a temperature; each prompt is prefilled once."""
    metrics = {
        "reward_pass_at_k": (REWARD_PASS, lambda group: dynamics.reward_pass_at_k([group], 1).value),
        "pass_at_k": (
            replace(REWARD_PASS, kind="pass_at_k", k=2),
            lambda group: dynamics.unbiased_pass_at_k([group], 2).value,
        ),
        "balance": (replace(REWARD_PASS, kind="balance"), balance_by_hand),
    }
    for name, (metric, wanted) in metrics.items():
        (tmp_path / name).mkdir()
        sweep = sweep_of(engine, problems, tmp_path / name, metric, prm)
        found = sweep.measure(ARMS, range(1, 5))
        spent = engine.stats.prefill_tokens + engine.stats.extend_tokens
        assert sweep.prefill_tokens == spent == sum(len(engine.encoder.encode(p).input_ids) for p in problems[1:])
        assert sweep.drawn == 4 * len(ARMS) * PARAMS.n
        for arm, temperature in enumerate(ARMS):
            groups = {}
            for group in engine.generate(problems[1:], replace(PARAMS, temperature=temperature)):
                groups[group.problem.id] = next(prm.scored([judge(group)]))
            assert found[:, arm].tolist() == pytest.approx([wanted(groups[p.id]) for p in problems[1:]])
    assert 0 < found.mean() < 1


def balance_by_hand(group: Group) -> float:
    kept = {r.text.strip(): r.correct for r in group.responses if r.score > 0.5}
    right = sum(kept.values())
    return min(right / 2, 1) * right / len(kept) if kept else 0.0


def test_an_interrupted_sweep_goes_on(engine, problems, prm, tmp_path: Path, monkeypatch) -> None:
    """What finished is not sampled again, and the values are the same."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    expected = sweep_of(engine, problems, whole, prm=prm)
    values = [expected.measure(ARMS, range(0, 3)), expected.measure(ARMS[1:], range(3, 5))]
    original, kept = Sweep._keep, []

    def keep(self, writer, batch, degrees):
        if len(kept) == 2:
            raise KeyboardInterrupt
        original(self, writer, batch, degrees)
        kept.extend(group.problem.id for group in batch)

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "_keep", keep)
        with pytest.raises(KeyboardInterrupt):
            while True:
                sweep_of(engine, problems, cut, prm=prm).measure(ARMS, range(0, 3))
                raise AssertionError("not interrupted")
    asked: list[str] = []
    generate = RolloutEngine.generate_batches

    def logged(self, some, params, **options):
        asked.extend(problem.id for problem in some)
        return generate(self, some, params, **options)

    monkeypatch.setattr(RolloutEngine, "generate_batches", logged)
    again = sweep_of(engine, problems, cut, prm=prm)
    found = [again.measure(ARMS, range(0, 3)), again.measure(ARMS[1:], range(3, 5))]
    assert sorted(asked) == sorted({p.id for p in problems} - set(kept))
    for one, other in zip(values, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again.drawn, again.prefill_tokens) == (expected.drawn, expected.prefill_tokens)
    third = sweep_of(engine, problems, cut, prm=prm)
    asked.clear()
    np.testing.assert_array_equal(third.measure(ARMS, range(0, 3)), values[0])
    assert asked == []
    with pytest.raises(ValueError, match="begun at other temperatures"):
        third.measure((0.5, 0.6), range(3, 5))


def test_more_arms_than_rows_are_refused(engine, problems, tmp_path: Path) -> None:
    """24 rows hold 6 arms of 4. A second call would be another plan, and a resumed run may have other rows."""
    metric, arms = replace(REWARD_PASS, kind="pass_at_k"), (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5)
    with pytest.raises(ValueError, match="n=28 responses a problem; allowed: at most max_rows=24"):
        sweep_of(engine, problems, tmp_path, metric).measure(arms, range(5))


def test_a_begun_sweep_of_other_arms_is_left_alone(engine, problems, prm, tmp_path: Path, monkeypatch) -> None:
    """Refused before anything is sampled on top of it."""
    original = Sweep._keep

    def keep(self, writer, batch, degrees):
        original(self, writer, batch, degrees)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "_keep", keep)
        with pytest.raises(KeyboardInterrupt):
            sweep_of(engine, problems, tmp_path, prm=prm).measure(ARMS, range(5))
    (partial,) = tmp_path.glob("sweep_*.partial")
    before = partial.read_bytes()
    with pytest.raises(ValueError, match="begun at other temperatures"):
        sweep_of(engine, problems, tmp_path, prm=prm).measure(ARMS[1:], range(5))
    assert partial.read_bytes() == before and not list(tmp_path.glob("*.parquet"))


def test_a_controller_chooses_by_a_real_sweep(engine, problems, prm, tmp_path: Path) -> None:
    """The grid's choice, in the form that the journal holds."""
    config = load_config("smoke", ["temperature.n=4", "temperature.k=1", "rollout.max_rows=24"])
    controller = build_controller(config.temperature, SweepMetric.of(config))
    summary = controller.choose(1.0, 0, sweep_of(engine, problems, tmp_path, prm=prm))
    means = [estimate.value for estimate in summary.values]
    assert summary.temperatures == config.temperature.grid and summary.chosen in summary.temperatures
    assert means[summary.temperatures.index(summary.chosen)] == max(means)
    assert {estimate.items for estimate in summary.values} == {5} and summary.drawn == 5 * 3 * 4
    assert summary.seconds > 0
    json.dumps(plain(summary), allow_nan=False)


def test_refusals(engine, problems, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no validation problems"):
        sweep_of(engine, [], tmp_path)
    with pytest.raises(ValueError, match=f"validation problem {problems[1].id} has no reference answer"):
        sweep_of(engine, [problems[0], replace(problems[1], gold=None)], tmp_path)
    with pytest.raises(ValueError, match="needs a score for every response"):
        sweep_of(engine, problems, tmp_path).measure(ARMS, range(1))


RESPONSES = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.1, 0.5, 0.9]), st.integers(1, 3), st.integers(0, 4)),
    min_size=1,
    max_size=8,
)


@given(RESPONSES, st.data())
@settings(deadline=None)
def test_metrics_agree_with_the_dynamics(rows, data) -> None:
    """Ties included: Reward-Pass@k is a hit among the first k by score, then fewer tokens, then the earlier sample."""
    k = data.draw(st.integers(1, len(rows)))
    responses = tuple(
        Response(
            sample=i, token_ids=np.zeros(length, np.int32), text=str(text), logprobs=np.zeros(length, np.float32),
            scaled_logprobs=np.zeros(length, np.float32), filtered_logprobs=np.zeros(length, np.float32),
            entropy=np.zeros(length, np.float32), finish_reason="stop", temperature=1.0, correct=right, score=score,
        )
        for i, (right, score, length, text) in enumerate(rows)
    )  # fmt: skip
    group, outcomes = Group(problem=Problem(id="p", question=""), responses=responses, prompt_length=1), None
    outcomes = outcomes_of(responses)
    scored, unbiased = (replace(REWARD_PASS, kind=kind, k=k) for kind in ("reward_pass_at_k", "pass_at_k"))
    assert scored(outcomes) == dynamics.reward_pass_at_k([group], k).value
    assert unbiased(outcomes) == pytest.approx(dynamics.unbiased_pass_at_k([group], k).value)


def test_balance_by_hand() -> None:
    """B-STaR's score: distinct texts, those above the threshold, the share of right ones, up to n* of them."""
    metric = replace(REWARD_PASS, kind="balance", target=3, threshold=0.5)
    texts = np.array([1, 1, 2, 3, 4, 5])
    correct = np.array([True, True, True, False, True, True])
    score = np.array([0.9, 0.9, 0.8, 0.7, 0.5, 0.1])
    outcomes = Outcomes(correct, score, np.ones(6, np.int32), texts)
    assert metric(outcomes) == pytest.approx(2 / 3 * 2 / 3)  # texts 1, 2 and 3 are selected, 1 and 2 are right
    assert replace(metric, target=1)(outcomes) == pytest.approx(2 / 3)
    everything = Outcomes(correct, np.full(6, math.nan), outcomes.length, texts)
    assert metric(everything) == pytest.approx(4 / 5)
    assert metric(Outcomes(correct, np.zeros(6), outcomes.length, texts)) == 0.0
    assert text_key(" a\n") == text_key("a") != text_key("b")
