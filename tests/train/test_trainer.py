"""The trainer: loss on responses only, exact state, equivalences."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mstar_engine.data.digits import demonstrations
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.train.collate import collate, imitate
from mstar_engine.train.likelihood import Likelihood, response_nll
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer, epoch_order

torch.set_num_threads(1)
MODEL, PROCESSOR = build_tiny(seed=1)
ENCODER = PromptEncoder(PROCESSOR)
EXAMPLES = [imitate(problem, ENCODER) for problem in demonstrations(14)]
SCHEDULE = Schedule(peak=1e-3, kind="cosine", warmup=2, horizon=20)


def trainer(model=None, **options):
    return Trainer(deepcopy(MODEL) if model is None else model, ENCODER, SCHEDULE, **options)


def equal_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_loss_is_the_mean_over_response_tokens_only():
    total, tokens = 0.0, 0
    for example in EXAMPLES[:5]:
        prompt = ENCODER.encode(example.problem)
        response = torch.as_tensor(example.response_ids).long()
        ids = torch.cat([prompt.input_ids, response])
        with torch.no_grad():
            logits = MODEL(input_ids=ids[None], **prompt.inputs).logits[0]
        total += F.cross_entropy(logits[len(prompt.input_ids) - 1 : -1], response, reduction="sum").item()
        tokens += len(response)
    stats = trainer().step(EXAMPLES[:5])
    assert stats.tokens == tokens and stats.loss == pytest.approx(total / tokens, rel=1e-5)


def test_full_logits_give_the_same_loss():
    class Full(torch.nn.Module):
        def forward(self, input_ids, attention_mask, pixel_values, use_cache):
            inputs = dict(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
            return MODEL(**inputs, use_cache=use_cache)

    batch = collate(EXAMPLES[:5], ENCODER)
    assert response_nll(Full(), batch).item() == pytest.approx(response_nll(MODEL, batch).item(), rel=1e-6)


def test_weights_scale_an_example():
    light = [replace(EXAMPLES[0], weight=0.0), EXAMPLES[1]]
    alone = response_nll(MODEL, collate(EXAMPLES[1:2], ENCODER)).item()
    assert response_nll(MODEL, collate(light, ENCODER)).item() == pytest.approx(alone, rel=1e-5)


def test_accumulation_equals_one_pass():
    whole, parts = trainer(max_grad_norm=1e9), trainer(max_grad_norm=1e9, max_tokens=150)
    a, b = whole.step(EXAMPLES[:8]), parts.step(EXAMPLES[:8])
    assert a.loss == pytest.approx(b.loss, rel=1e-5) and a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    first = [t.optimizer.state[t._trained[0]]["exp_avg"] for t in (whole, parts)]
    torch.testing.assert_close(*first, rtol=1e-3, atol=1e-7)


def test_state_round_trip_is_exact_in_the_middle_of_an_epoch(tmp_path):
    straight = trainer()
    straight.train_epoch(EXAMPLES, batch_size=4, seed=7, epoch=2)

    class Stop(Exception):
        pass

    broken = trainer()

    def stop_after_two(stats):
        if stats.step == 1:
            torch.save((broken.model.state_dict(), broken.state_dict()), tmp_path / "state.pt")
            raise Stop

    with pytest.raises(Stop):
        broken.train_epoch(EXAMPLES, batch_size=4, seed=7, epoch=2, progress=stop_after_two)
    weights, state = torch.load(tmp_path / "state.pt")
    resumed = trainer()
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(state)
    stats = resumed.train_epoch(EXAMPLES, batch_size=4, seed=7, epoch=2)
    assert stats.steps == 2 and resumed.global_step == straight.global_step == 4
    assert equal_weights(resumed.model, straight.model)
    for a, b in zip(resumed._trained, straight._trained):
        mine, theirs = resumed.optimizer.state.get(a, {}), straight.optimizer.state.get(b, {})
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_optimizer_outlives_an_epoch_and_is_reset_on_request():
    kept, reset = trainer(), trainer()
    built = kept.optimizer
    for t in (kept, reset):
        t.train_epoch(EXAMPLES, batch_size=8)
    reset.reset_optimizer()
    reset.reset_clock()
    assert reset.global_step == 0 and not reset.optimizer.state
    for t in (kept, reset):
        t.train_epoch(EXAMPLES, batch_size=8, epoch=1)
    assert kept.optimizer is built and kept.global_step == 4
    assert not equal_weights(kept.model, reset.model)


def test_the_learning_rate_follows_the_global_step():
    seen = []
    t = trainer()
    for epoch in range(2):
        t.train_epoch(EXAMPLES, batch_size=5, epoch=epoch, progress=lambda s: seen.append((s.step, s.learning_rate)))
    assert seen == [(step, SCHEDULE(step)) for step in range(6)]


def test_training_lowers_the_loss_and_clips():
    t = trainer(max_grad_norm=0.5)
    losses = [t.step(EXAMPLES[:4]).loss for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    t = trainer()
    bad = [replace(EXAMPLES[0], weight=float("nan"))]
    with pytest.raises(FloatingPointError, match="step 0"):
        t.step(bad)
    assert equal_weights(t.model, MODEL) and t.global_step == 0


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_that_ended_early_leaves_nothing_to_the_next(bf16):
    class Interrupted(Likelihood):
        parts = 0

        def loss(self, *given):
            self.parts += 1
            if self.parts == 2:
                raise KeyboardInterrupt
            return super().loss(*given)

    def fresh():
        return deepcopy(MODEL).bfloat16() if bf16 else deepcopy(MODEL)

    stopped, undisturbed = trainer(fresh(), objective=Interrupted(), bf16=bf16), trainer(fresh(), bf16=bf16)
    stopped.model.eval()
    with pytest.raises(KeyboardInterrupt):
        stopped.step(EXAMPLES[:4], max_examples=2)
    assert not stopped.model.training and stopped.global_step == 0
    assert stopped.step(EXAMPLES[4:8]) == undisturbed.step(EXAMPLES[4:8])
    assert equal_weights(stopped.model, undisturbed.model)


def test_frozen_parameters_stay(tmp_path):
    model = deepcopy(MODEL)
    model.model.vision_tower.requires_grad_(False)
    trainer(model).step(EXAMPLES[:4])
    assert equal_weights(model.model.vision_tower, MODEL.model.vision_tower) and not equal_weights(model, MODEL)


def test_order_is_a_permutation_keyed_by_seed_and_epoch():
    orders = [epoch_order(50, *key) for key in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3 and epoch_order(50, 0, 1) == orders[1]


def test_batch_size_is_checked():
    with pytest.raises(ValueError, match="batch_size=0"):
        trainer().train_epoch(EXAMPLES, batch_size=0)
