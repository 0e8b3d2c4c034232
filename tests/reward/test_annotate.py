"""Monte Carlo step labels: what is drawn, when it stops, what the labels mean; then on the real engine."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.data.digits import demonstrations, digits_problems
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.annotate import ProblemAnnotation, annotate
from mstar_engine.reward.answers import judge
from mstar_engine.reward.label_file import LabelWriter, read_labels
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Group, Problem, Response, SamplingParams

TOKENIZER = build_tiny(0)[1].tokenizer
RIGHT, WRONG = "# Answer 12", "# Answer 13"


def response(text: str, sample: int = 0) -> Response:
    """A finished response with this text."""
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    nothing = np.zeros(len(ids), np.float32)
    return Response(
        sample=sample, token_ids=np.asarray(ids, np.int32), text=text, logprobs=nothing, scaled_logprobs=nothing,
        filtered_logprobs=nothing, entropy=nothing, finish_reason="stop", temperature=1.0,
    )  # fmt: skip


def group(*texts: str, gold: str | None = "12") -> Group:
    """Judged solutions with these texts."""
    problem = Problem(id="p", question="", gold=gold)
    responses = tuple(response(text, i) for i, text in enumerate(texts))
    made = Group(problem=problem, responses=responses, prompt_length=0)
    return judge(made)


def solution(steps: int, right: bool, mark: int = 0) -> str:
    """A solution of `steps` steps, the last of which is its answer."""
    return "\n\n".join([*(f"{mark} step {i}" for i in range(steps - 1)), RIGHT if right else WRONG])


def play(plan: ProblemAnnotation, outcome, rng: random.Random | None = None) -> list[int]:
    """Run a plan with `outcome(stem, offset, k)` for the k-th completion of a place; the sample numbers used."""
    waiting, drawn, samples = plan.begin(), {}, []
    while waiting:
        fork = waiting.pop(rng.randrange(len(waiting)) if rng else 0)
        texts = []
        for sample in fork.samples:
            key = (fork.stem, fork.offset)
            drawn[key] = drawn.get(key, 0) + 1
            texts.append(RIGHT if outcome(*key, drawn[key] - 1) else WRONG)
            samples.append(sample)
        waiting += plan.ended(fork, [response(text) for text in texts])
        assert len(waiting) <= plan.fork_rows
    return samples


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 2**32),
)
def test_hard_and_soft_labels(shapes: list[tuple[int, bool]], completions: int, seed: int) -> None:
    """Hard stops at the first success and never draws more than `completions`; soft draws them all."""
    texts = [solution(steps, right, mark) for mark, (steps, right) in enumerate(shapes)]
    table: dict[tuple[int, int, int], bool] = {}
    dice = random.Random(seed)

    def outcome(stem: int, offset: int, k: int) -> bool:
        return table.setdefault((stem, offset, k), dice.random() < 0.4)

    for mode in ("hard", "soft"):
        plan = ProblemAnnotation(group(*texts), TOKENIZER, mode, completions)
        samples = play(plan, outcome, random.Random(seed))
        assert len(samples) == len(set(samples)) == plan.drawn
        forked = iter(range(len(plan.forked)))
        results = {one.sample: one for one in plan.results()}
        # One-step solutions have one text: the answer alone. Repetitions are left out.
        assert len(results) == len({text.strip() for text in texts})
        for one in results.values():
            steps = len(one.step_ends)
            assert one.labels[-1] == float(one.correct) and one.mc[-1].n == 1
            stem = next(forked) if steps > 1 else -1
            for step in range(steps - 1):
                row = [outcome(stem, one.step_ends[step], k) for k in range(completions)]
                first = row.index(True) + 1 if True in row else completions
                if mode == "hard":
                    assert (one.mc[step].n, one.labels[step]) == (first, float(any(row)))
                else:
                    assert one.mc[step].n == completions
                    assert one.labels[step] == pytest.approx(sum(row) / completions)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.data())
def test_binary_search_finds_the_first_error(steps: int, completions: int, data) -> None:
    """With outcomes that go from right to wrong once, the labels are exact for about log2(steps) places."""
    first_wrong = data.draw(st.integers(0, steps - 1))
    plan = ProblemAnnotation(group(solution(steps, False)), TOKENIZER, "binary", completions)
    (one,) = plan.solutions
    ends = one.ends
    play(plan, lambda _, offset, k: ends.index(offset) < first_wrong)
    (found,) = plan.results()
    assert found.labels == tuple(float(step < first_wrong) for step in range(steps))
    probed = [mc for mc in found.mc[:-1] if mc.n]
    assert len(probed) <= math.ceil(math.log2(steps)) + 1
    assert all(mc.n in (1, completions) for mc in probed)


def test_binary_search_spares_right_solutions() -> None:
    """All their steps are right: nothing is drawn."""
    plan = ProblemAnnotation(group(solution(4, True)), TOKENIZER, "binary")
    assert not plan.forked
    assert plan.results()[0].labels == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.7])
def test_stopping_at_the_first_success_costs_what_it_must(p: float) -> None:
    """At most 1.3 times the expected (1 - (1 - p)^N) / p completions a step; 3000 steps, seeded: over 10 sigma away."""
    rng, drawn, steps = random.Random(1), 0, 0
    for _ in range(1000):
        plan = ProblemAnnotation(group(solution(4, False)), TOKENIZER, "hard", 8)
        play(plan, lambda *_: rng.random() < p)
        drawn, steps = drawn + plan.drawn, steps + 3
    expected = (1 - (1 - p) ** 8) / p
    assert 0.9 * expected < drawn / steps < 1.1 * expected


def test_the_completion_is_judged_with_what_precedes_it() -> None:
    """An answer may begin in the solution and end in the completion; one that does not end by itself is wrong."""
    plan = ProblemAnnotation(group("a 1\n\n# Answer 1\n\nand 2", WRONG), TOKENIZER, "hard", 2)
    fork = next(fork for fork in plan.begin() if fork.offset == plan.offsets[0][1])
    assert plan.ended(fork, [response("2")]), "'# Answer 1\\n\\n2' is not 12"
    plan = ProblemAnnotation(group("a\n\nb", WRONG), TOKENIZER, "hard", 1)
    cut = replace(response(RIGHT), finish_reason="length")
    assert plan.ended(plan.begin()[0], [cut]) == []
    assert plan.results()[0].labels[0] == 0.0, "a right answer that was cut may be the beginning of another"
    plan = ProblemAnnotation(group("# Answer\n\n1 2", WRONG), TOKENIZER, "hard", 2)
    assert plan.ended(plan.begin()[0], [response("12")]) == []
    assert plan.results()[0].labels[0] == 1.0


def test_refusals() -> None:
    """Named by key or problem, before anything is drawn."""
    with pytest.raises(ValueError, match=r"annotate: problem p has no gold"):
        ProblemAnnotation(group("1", gold=None), TOKENIZER)
    with pytest.raises(ValueError, match=r"annotate: mode='easy'; allowed: hard, soft, binary"):
        ProblemAnnotation(group("1"), TOKENIZER, "easy")
    with pytest.raises(ValueError, match=r"annotate: completions=0; allowed: 1 or more"):
        ProblemAnnotation(group("1"), TOKENIZER, completions=0)


# --- on the engine ---


def test_on_the_engine_every_mode_labels_every_step(tmp_path) -> None:
    """Real solutions forked in the real tree; the file that comes of it reads back equal; prefill is the ideal."""
    torch.set_num_threads(1)
    model, processor = build_tiny(0)
    engine = RolloutEngine(model, processor, max_rows=64)
    worked = demonstrations(6, 3)
    groups = []
    for number, problem in enumerate(worked):
        texts = [problem.response, "red 1\n\n" + problem.response, "", "5"]
        responses = tuple(response(text, i) for i, text in enumerate(texts[: 2 + number % 3]))
        groups.append(judge(Group(problem=problem, responses=responses, prompt_length=30)))
    by_id = {problem.id: problem for problem in worked}
    for mode in ("hard", "soft", "binary"):
        path = tmp_path / f"{mode}.parquet"
        kept = {}
        with LabelWriter(path) as writer:
            for batch in annotate(engine, groups, SamplingParams(max_tokens=24, seed=2), mode=mode, completions=3):
                for plan in batch:
                    kept[plan.problem.id] = plan.results()
                writer.write(*(plan.results() for plan in batch))
            writer.finish()
        assert set(kept) == set(by_id)
        if mode != "binary":
            stems = [one for solutions in kept.values() for one in solutions if len(one.step_ends) > 1]
            prompts = [engine.encoder.encode(problem) for problem in worked]
            assert engine.stats.prefill_tokens == sum(len(prompt.input_ids) for prompt in prompts)
            assert engine.stats.extend_tokens == sum(one.step_ends[-2] - 1 for one in stems)
        read = read_labels(path, processor.tokenizer, by_id)
        flat = [one for name in sorted(kept) for one in kept[name]]
        assert len(read) == len(flat)
        for ours, theirs in zip(read, flat, strict=True):
            assert ours.problem is theirs.problem
            assert ours.response_ids.tolist() == theirs.response_ids.tolist()
            assert (ours.step_ends, ours.mc, ours.text) == (theirs.step_ends, theirs.mc, theirs.text)
            assert ours.labels == pytest.approx(theirs.labels)
        again = [plan for batch in annotate(engine, groups[2:4], SamplingParams(max_tokens=24, seed=2), mode=mode,
                                            completions=3) for plan in batch]  # fmt: skip
        for plan in again:
            assert [one.labels for one in plan.results()] == [one.labels for one in kept[plan.problem.id]]


def test_unlabelled_problems_are_not_in_the_digits() -> None:
    """The default task gives every problem a gold, so the default run can annotate all of them."""
    assert all(problem.gold for problem in digits_problems("train", 20))
