"""Step labels by Monte Carlo completions (Math-Shepherd, arXiv 2312.08935; paper section 3.2).

A step is as good as what can still come of it: from the end of each step of a solution, completions are sampled and
judged. The last step needs none, its outcome is the solution's own. All completions of a problem are branches of one
prefix tree (rollout/forks.py); this module decides which are drawn:

- "hard": one after the other until the first that is right; label 1 if any of at most `completions` is.
- "soft": all of them; the label is the share that is right.
- "binary": hard labels by binary search for the first wrong step of each wrong solution, as in OmegaPRM (arXiv
  2406.06592): steps before it are 1, it and those after it 0. Cheap; a right solution costs nothing and is all 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mstar_engine.reward.answers import judge_response
from mstar_engine.reward.steps import step_ends
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout.forks import Fork, complete
from mstar_engine.types import Group, LabelledSolution, MonteCarlo, Problem, Response, SamplingParams

MODES = ("hard", "soft", "binary")


@dataclass(slots=True)
class _Step:
    """The state of one step: completions that came back, the right ones among them, and those asked for."""

    n: int = 0
    correct: int = 0
    asked: int = 0


@dataclass(slots=True)
class _Solution:
    response: Response
    ends: tuple[int, ...]
    steps: list[_Step]
    low: int = 0  # binary: the first wrong step is at `low` or later ...
    high: int = 0  # ... and at `high` or earlier


@dataclass
class ProblemAnnotation:
    """The fork plan of one problem: its solutions are the stems, the ends of their steps the places to fork.

    `group` holds judged solutions; those without a step and repetitions of a text are left out. `tokenizer` decodes
    completions; `mode` and `completions` as in the module.
    """

    group: Group
    tokenizer: object
    mode: str = "hard"
    completions: int = 8
    delimiter: str = "\n\n"
    max_steps: int = 0
    solutions: list[_Solution] = field(init=False)
    forked: list[_Solution] = field(init=False)
    """The solutions with a step that needs completions; a fork's stem is a place in this list."""
    drawn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"annotate: mode={self.mode!r}; allowed: {', '.join(MODES)}")
        if self.completions < 1:
            raise ValueError(f"annotate: completions={self.completions}; allowed: 1 or more")
        if self.group.problem.gold is None:
            raise ValueError(f"annotate: problem {self.group.problem.id} has no gold to judge completions by")
        self.solutions = []
        texts = set()
        for response in self.group.responses:
            ends = step_ends(response.token_ids, self.tokenizer, self.delimiter, self.max_steps)
            if not ends or response.text.strip() in texts:
                continue
            texts.add(response.text.strip())
            steps = [_Step() for _ in ends]
            right = int(bool(response.correct))
            steps[-1] = _Step(n=1, correct=right, asked=1)
            self.solutions.append(_Solution(response, ends, steps, high=len(ends) - 1))
        spared = self.mode == "binary"  # a right solution is right all through
        self.forked = [s for s in self.solutions if len(s.steps) > 1 and not (spared and s.response.correct)]

    @property
    def problem(self) -> Problem:
        """Whose solutions these are."""
        return self.group.problem

    @property
    def stems(self) -> list[np.ndarray]:
        """The solutions that are forked, up to the last step that is."""
        return [s.response.token_ids[: s.ends[-2]] for s in self.forked]

    @property
    def offsets(self) -> list[tuple[int, ...]]:
        """Where each stem may be forked: the ends of all steps but the last."""
        return [s.ends[:-1] for s in self.forked]

    @property
    def fork_rows(self) -> int:
        """The most completions at one time."""
        if self.mode == "binary":
            return len(self.forked)
        return sum(len(s.steps) - 1 for s in self.forked) * (self.completions if self.mode == "soft" else 1)

    def begin(self) -> list[Fork]:
        """The first completions: of every step, or of the middle step of each solution."""
        if self.mode == "binary":
            return [self._probe(stem) for stem in range(len(self.forked))]
        return [
            self._ask(stem, step, self.completions if self.mode == "soft" else 1)
            for stem, solution in enumerate(self.forked)
            for step in range(len(solution.steps) - 1)
        ]

    def ended(self, fork: Fork, completions: Sequence[Response]) -> list[Fork]:
        """Judge what came back and say what to draw next."""
        solution = self.forked[fork.stem]
        at = solution.ends[:-1].index(fork.offset)
        step = solution.steps[at]
        for completion in completions:
            step.n += 1
            step.correct += self._right(solution, fork.offset, completion)
        if step.n < step.asked:
            return []  # the rest of them is on its way
        if step.n < self.completions and (self.mode == "soft" or not step.correct):
            return [self._ask(fork.stem, at, 1)]
        if self.mode != "binary":
            return []
        # A right completion: this step and those before it are right. None: the first wrong step is here or before.
        if step.correct:
            solution.low = at + 1
        else:
            solution.high = at
        return [self._probe(fork.stem)] if solution.low < solution.high else []

    def results(self) -> list[LabelledSolution]:
        """The labelled solutions, once every fork has ended."""
        return [
            LabelledSolution(
                problem=self.problem,
                sample=s.response.sample,
                response_ids=s.response.token_ids,
                text=s.response.text,
                correct=bool(s.response.correct),
                prompt_length=self.group.prompt_length,
                step_ends=s.ends,
                labels=self._labels(s),
                mc=tuple(MonteCarlo(step.n, step.correct) for step in s.steps),
            )
            for s in self.solutions
        ]

    def _labels(self, solution: _Solution) -> tuple[float, ...]:
        if self.mode == "binary":
            first_wrong = len(solution.steps) if solution.response.correct else solution.low
            return tuple(float(at < first_wrong) for at in range(len(solution.steps)))
        if self.mode == "soft":
            return tuple(step.correct / step.n for step in solution.steps)
        return tuple(float(step.correct > 0) for step in solution.steps)

    def _ask(self, stem: int, step: int, count: int) -> Fork:
        """`count` more completions of a step; each has a sample number of its own within the problem."""
        solution = self.forked[stem]
        state = solution.steps[step]
        before = sum(len(s.steps) for s in self.forked[:stem]) + step
        first = before * self.completions + state.asked
        state.asked += count
        self.drawn += count
        return Fork(stem, solution.ends[step], tuple(range(first, first + count)))

    def _probe(self, stem: int) -> Fork:
        solution = self.forked[stem]
        return self._ask(stem, (solution.low + solution.high) // 2, 1)

    def _right(self, solution: _Solution, offset: int, completion: Response) -> bool:
        """Whether the solution's beginning and the completion together give the right answer."""
        ids = [*solution.response.token_ids[:offset], *completion.token_ids]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        typed = () if self.problem.answer_type is None else (self.problem.answer_type,)
        return judge_response(replace(completion, text=text), self.problem.gold, *typed).correct


def annotate(
    engine: RolloutEngine,
    groups: Sequence[Group],
    params: SamplingParams,
    *,
    mode: str = "hard",
    completions: int = 8,
    delimiter: str = "\n\n",
    max_steps: int = 0,
) -> Iterator[list[ProblemAnnotation]]:
    """Label the steps of judged solutions; yields problems as they are done, some at a time.

    `params.max_tokens` bounds a whole response, solution's beginning included. Draws are addressed by (seed, problem,
    sample): an annotation that is interrupted and done again finds the same labels.
    """
    plans = [ProblemAnnotation(group, engine.tokenizer, mode, completions, delimiter, max_steps) for group in groups]
    settled = [plan for plan in plans if not plan.forked]
    if settled:
        yield settled
    yield from complete(engine, [plan for plan in plans if plan.forked], params)
