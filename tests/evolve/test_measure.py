"""Measuring a policy: one engine call in which a problem's greedy response and samples share its prompt."""

import dataclasses

import pytest
import torch

from mstar_engine.data.digits import digits_problems
from mstar_engine.evolve.dynamics import measure
from mstar_engine.evolve.measure import measure_policy, measurement
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.forms import FORMS
from mstar_engine.reward.head import RewardHead, fresh_layers
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout_file import RolloutWriter

PROBLEMS = digits_problems("validation", 5)
ASKED = {"max_tokens": 12, "seed": 3, "samples": 4, "k": 3, "temperature": 1.3}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine() -> RolloutEngine:
    return RolloutEngine(*build_tiny(0), max_rows=32)


@pytest.fixture(scope="module")
def prm() -> ProcessRewardModel:
    model, processor = build_tiny(1)
    width = model.config.get_text_config(decoder=True).hidden_size
    layers = fresh_layers("scalar", width, seed=1, dtype=torch.float32, device=torch.device("cpu"))
    return ProcessRewardModel(model, processor, RewardHead("scalar", layers=layers), FORMS["mstar_scalar"])


def test_every_prompt_is_prefilled_once(engine, prm) -> None:
    """The counts are those of the engine's last call: it prefilled one prompt a problem and sampled every token."""
    found, groups = measure_policy(engine, PROBLEMS, **ASKED, prm=prm)
    assert [group.problem for group in groups] == PROBLEMS
    assert engine.stats.prefill_tokens == sum(group.prompt_length for group in groups)
    responses = [response for group in groups for response in group.responses]
    assert engine.stats.sampled_tokens == sum(len(response.token_ids) for response in responses)
    assert [r.temperature for r in groups[0].responses] == [0.0] + [pytest.approx(1.3)] * 4
    assert found.dynamics == measure(groups, k=3, scored=True, seed=3)
    assert found.greedy == found.dynamics["greedy"] and found.pass_at_k == found.dynamics["pass_at_k"]
    assert found.reward_pass_at_2 == found.dynamics["reward_pass_at_k"]  # at its default, 2
    assert found.verifier is not None and list(found.verifier) == [1, 2, 4]


def test_the_greedy_response_is_that_of_a_greedy_measurement(engine) -> None:
    alone, greedy = measure_policy(engine, PROBLEMS, max_tokens=12, seed=9)
    assert list(alone.dynamics) == ["greedy"] and engine.stats.prefill_tokens == sum(g.prompt_length for g in greedy)
    assert (alone.pass_at_1, alone.pass_at_k, alone.reward_pass_at_2, alone.verifier) == (None,) * 4
    assert alone.samples_in_words() == ""
    beside, groups = measure_policy(engine, PROBLEMS, **ASKED)
    assert beside.greedy == alone.greedy and beside.verifier is None and beside.reward_pass_at_2 is None
    for one, other in zip(greedy, groups, strict=True):
        assert one.responses[0].token_ids.tolist() == other.responses[0].token_ids.tolist()


def test_what_is_kept_is_not_sampled_again(engine, tmp_path) -> None:
    """With all groups on the disk the measurement is the same and the engine isn't asked."""
    results = []
    for _ in range(2):
        with RolloutWriter(tmp_path / "validation_0001.parquet", 1) as writer:
            results.append(measure_policy(engine, PROBLEMS, **ASKED, writer=writer)[0])
        engine.stats.prefill_tokens, first = 0, engine.stats.prefill_tokens
        assert (first > 0) == (len(results) == 1)
    assert results[0] == results[1]


def test_other_ks_and_steps(engine, prm) -> None:
    """What is configured reaches the metrics; Reward-Pass@2 stays at 2."""
    _, groups = measure_policy(engine, PROBLEMS, **ASKED, prm=prm)
    # Half of the samples made right by hand, so that the metrics differ.
    groups = [
        dataclasses.replace(
            group,
            responses=tuple(
                dataclasses.replace(r, correct=(r.sample + i) % 5 == 3) for r in group.responses
            ),
        )
        for i, group in enumerate(groups)
    ]  # fmt: skip
    found = measurement(groups, k=4, reward_k=4, scored=True, seed=0, delimiter=" ", max_steps=2)
    assert found.dynamics["reward_pass_at_k"].value == found.dynamics["pass_at_k"].value
    assert found.reward_pass_at_2 == measurement(groups, k=1, reward_k=2, scored=True, seed=0).reward_pass_at_2
    assert found.dynamics["steps"] == measure(groups, delimiter=" ", max_steps=2)["steps"]
    assert found.samples_in_words() == "Pass@4 {0:.1f}%  Reward-Pass@4 {0:.1f}%".format(100 * found.pass_at_k.value)


@pytest.mark.parametrize("key", ["k", "reward_k"])
def test_too_few_samples_are_refused_before_sampling(engine, prm, key) -> None:
    engine.stats.prefill_tokens = -1
    with pytest.raises(ValueError, match=f"{key}=5; allowed: 1 to samples=4"):
        measure_policy(engine, PROBLEMS, **(ASKED | {key: 5}), prm=prm)
    assert engine.stats.prefill_tokens == -1
    assert measure_policy(engine, PROBLEMS[:1], **(ASKED | {"reward_k": 5}))[0].pass_at_k.items == 1
