"""What step_rewards refuses: unfit scores, by response and step, and bad arguments, by name."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from rewards import FORMS, INTERPRETED, RUNNABLE, Case, ints, make_case, run

from mstar_kernels.step_rewards import check_indices, refuse_unfit, step_rewards

torch.set_num_threads(1)


@pytest.mark.parametrize("form", ["reference", *FORMS])
@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize(
    "value, message",
    [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite"), (3e38, "infinite")],
)
def test_an_unfit_score_names_response_and_step(form: str, labels: int, value: float, message: str) -> None:
    label_rows = torch.ones(labels, 2)
    case = Case(torch.zeros(9, 2), label_rows, torch.arange(9, dtype=torch.int32), ints(0, 1, 2, 4, 9))
    case.hidden[5:7] = value
    with pytest.raises(ValueError, match=rf"step_rewards: response 3, step 1: score is {message}"):
        run(form, case)


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_an_unfit_bias_is_refused(form: str) -> None:
    case = make_case(5, [2], labels=3)
    for at in range(3):
        for value, message in ((math.nan, "NaN"), (-math.inf, "infinite")):
            bias = torch.zeros(3)
            bias[at] = value
            with pytest.raises(ValueError, match=f"response 0, step 0: score is {message}"):
                run(form, dataclasses.replace(case, bias=bias))


@pytest.mark.parametrize("form", ["auto", "reference", *FORMS])
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_an_unfit_score_may_be_left_for_later(form: str, labels: int) -> None:
    """It stands among the scores, and the other responses are what they are without it."""
    case = make_case(5, [1, 3, 2, 4], labels)
    hidden = torch.randn(10, 5, generator=torch.Generator().manual_seed(labels))
    case = dataclasses.replace(case, hidden=hidden, step_positions=torch.arange(10, dtype=torch.int32))
    wanted = run(form, case)
    hidden[2], hidden[7] = math.nan, torch.finfo(torch.float32).max * case.label_rows[0].sign()
    found = run(form, case, checked=True, deferred=True)
    assert found.scores[2].isnan() and found.scores[7].isinf()
    fit = torch.tensor([True, True, False, *[True] * 4, False, True, True])
    assert torch.equal(found.scores[fit], wanted.scores[fit])
    assert torch.equal(found.reduced[[0, 2]], wanted.reduced[[0, 2]])
    assert torch.equal(found.weakest[[0, 2]], wanted.weakest[[0, 2]])
    with pytest.raises(ValueError, match="step_rewards: response 1, step 1: score is NaN"):
        refuse_unfit(found.scores, case.response_steps)
    found.scores[2] = 0.5
    with pytest.raises(ValueError, match="step_rewards: response 3, step 1: score is infinite"):
        refuse_unfit(found.scores, case.response_steps)
    refuse_unfit(wanted.scores, case.response_steps)


@pytest.mark.parametrize("form", ["auto", "reference", *(form for form in FORMS if form not in RUNNABLE)])
def test_a_caller_may_answer_for_the_indices(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing looks at them, and the result is the same."""
    case = make_case(33, [1, 70, 2], bias=True)
    wanted = run(form, case, "mean")
    monkeypatch.setattr("mstar_kernels.step_rewards.check_indices", None)
    found = run(form, case, "mean", checked=True)
    for one, other in zip(
        (found.scores, found.reduced, found.weakest), (wanted.scores, wanted.reduced, wanted.weakest)
    ):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
def test_captured_in_a_cuda_graph() -> None:
    """Replayed on other hidden states and other steps, an unfit one among them."""
    case = make_case(128, [3, 1, 8, 4]).to("cuda")
    step_rewards(**case.tensors, checked=True, deferred=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step_rewards(**case.tensors, checked=True, deferred=True)
    for seed in (1, 2):
        other = make_case(128, [1, 9, 2, 4], seed=seed)
        for name in ("hidden", "label_rows", "step_positions", "response_steps"):
            getattr(case, name).copy_(getattr(other, name))
        graph.replay()
        wanted = run("reference", other)
        torch.testing.assert_close(found.scores.cpu(), wanted.scores, rtol=1e-5, atol=2e-6)
        assert torch.equal(found.weakest.cpu(), wanted.weakest)
    case.hidden[int(case.step_positions[4])] = math.nan
    graph.replay()
    with pytest.raises(ValueError, match="score is NaN"):
        refuse_unfit(found.scores, case.response_steps)


GOOD = make_case(6, [2, 1], bias=True)


@pytest.mark.parametrize(
    "message, changes",
    [
        ("head='linear'; allowed: softmax, sigmoid", {"head": "linear"}),
        ("reduction='max'; allowed: min, mean, product, last", {"reduction": "max"}),
        ("backend='gpu'; allowed: auto", {"backend": "gpu"}),
        ("label_rows has 2 rows; allowed with head='sigmoid': one row", {"head": "sigmoid"}),
        ("label_rows has 1 rows; allowed with head='softmax': two", {"label_rows": GOOD.label_rows[:1]}),
        ("label_rows has 0 rows; .*one row", {"label_rows": GOOD.label_rows[:0], "head": "sigmoid"}),
        ("hidden is torch.float64; allowed: float32, bfloat16, float16", {"hidden": GOOD.hidden.double()}),
        ("hidden is torch.int64", {"hidden": GOOD.hidden.nan_to_num().long()}),
        (r"hidden has shape \(90, 3\), strides \(6, 2\); allowed: a contig", {"hidden": GOOD.hidden[:, ::2]}),
        (r"hidden has shape \(540,\)", {"hidden": GOOD.hidden.flatten()}),
        (r"hidden has shape \(90, 0\)", {"hidden": GOOD.hidden[:, :0]}),
        (r"label_rows has shape \(2, 5\).*\[L, 6\]", {"label_rows": GOOD.label_rows[:, :5].contiguous()}),
        (r"label_rows has shape \(2, 6\), strides \(1, 2\)",
         {"label_rows": GOOD.label_rows.T.contiguous().T}),
        (r"label_rows has shape \(12,\)", {"label_rows": GOOD.label_rows.flatten()}),
        ("label_rows is torch.bfloat16; allowed: float32$", {"label_rows": GOOD.label_rows.bfloat16()}),
        ("label_rows is torch.float16; allowed: float32 or bfloat16",
         {"hidden": GOOD.hidden.bfloat16(), "label_rows": GOOD.label_rows.half()}),
        ("bias is torch.float64; allowed: float32", {"bias": torch.zeros(2).double()}),
        (r"bias has shape \(3,\).*\[2\]", {"bias": torch.zeros(3)}),
        ("bias has shape .*strides", {"bias": torch.zeros(4)[::2]}),
        ("step_positions is torch.int64; allowed: int32", {"step_positions": GOOD.step_positions.long()}),
        (r"step_positions has shape \(1, 3\)", {"step_positions": GOOD.step_positions[None]}),
        ("step_positions has shape .*strides", {"step_positions": ints(*range(6))[::2]}),
        (r"step_positions\[1\] = 90; allowed: 0 to 89", {"step_positions": ints(0, 90, -1)}),
        (r"step_positions\[2\] = -1", {"step_positions": ints(0, 89, -1)}),
        ("response_steps is torch.int64; allowed: int32", {"response_steps": GOOD.response_steps.long()}),
        (r"response_steps has shape \(0,\).*\[N \+ 1\]", {"response_steps": ints()}),
        (r"response_steps\[0\] = 1; allowed: 0", {"response_steps": ints(1, 2, 3)}),
        (r"response_steps\[2\] = 1 is below 2", {"response_steps": ints(0, 2, 1, 3)}),
        ("response 1 has no step.*allowed: one or more", {"response_steps": ints(0, 2, 2, 3)}),
        (r"response_steps\[2\] = 2; allowed: 3, the length of step_positions", {"response_steps": ints(0, 1, 2)}),
        (r"response_steps\[1\] = 4; allowed: 3", {"response_steps": ints(0, 4)}),
        ("label_rows is on meta; allowed: cpu, as hidden", {"label_rows": GOOD.label_rows.to("meta")}),
        ("bias is on meta", {"bias": torch.zeros(2, device="meta")}),
        ("step_positions is on meta", {"step_positions": GOOD.step_positions.to("meta")}),
        ("response_steps is on meta", {"response_steps": GOOD.response_steps.to("meta")}),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(message: str, changes: dict) -> None:
    with pytest.raises(ValueError, match=message):
        step_rewards(**{**GOOD.tensors, "hidden": GOOD.hidden, **changes})
    if message.startswith((r"step_positions\[", r"response_steps\[", "response 1 has")):  # before anything is sent
        indices = {name: changes.get(name, getattr(GOOD, name)) for name in ("step_positions", "response_steps")}
        with pytest.raises(ValueError, match=message):
            check_indices(**indices, tokens=len(GOOD.hidden))


@pytest.mark.skipif(INTERPRETED, reason="Triton runs on CPU tensors in its interpreter")
def test_triton_on_cpu_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend='triton'.*TRITON_INTERPRET=1"):
        step_rewards(**GOOD.tensors, backend="triton")
