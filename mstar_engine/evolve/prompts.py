"""Which problems an iteration samples, and what their reference answers are (paper section 5).

Labelled problems come from the start; unlabelled ones are mixed in from a share of the iterations on, from when on an
iteration draws from both. Arms compare at equal compute: an iteration has as many problems as without the unlabelled
ones. Everything is a function of (configuration, iteration), so a resumed run sees the same. With pseudo-labels the
true answers are held back here: no problem carries one until its responses have been selected.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from mstar_engine.config import RunConfig
from mstar_engine.types import ORACLE, PSEUDO, Group, Problem


class Prompts:
    """The prompts of one run: `labelled` problems, and `unlabelled` ones where `prompts.unlabelled` uses them.

    `mix_in` is the first iteration, from 0, that also meets unlabelled problems.
    """

    def __init__(self, config: RunConfig, labelled: Sequence[Problem], unlabelled: Sequence[Problem]) -> None:
        kind = config.prompts.unlabelled
        self.iterations = config.evolve.iterations_of(len(labelled))
        self.labelled = labelled
        self.config = config.prompts
        self.mix_in = first_mixed(config.prompts.mix_in_from, self.iterations)
        self._interval, self._seed = config.evolve.interval, config.seed
        self._truths: dict[str, str] = {}
        self._unlabelled: list[Problem] = []
        if kind == ORACLE:
            self._unlabelled = [replace(problem, label=ORACLE) for problem in unlabelled]
        elif kind == PSEUDO:
            self._unlabelled = [replace(problem, gold=None, response=None, label=PSEUDO) for problem in unlabelled]
            self._truths = {problem.id: problem.gold for problem in unlabelled if problem.gold is not None}

    def problems(self, iteration: int) -> list[Problem]:
        """The problems of an iteration, counted from 0. Those to be pseudo-labelled have no gold."""
        if not self._unlabelled or iteration < self.mix_in:
            return interval(self.labelled, self._interval, iteration, self._seed)
        pool = [*self.labelled, *self._unlabelled]
        labelled, share = len(self.labelled), self._interval
        sizes = (_part(labelled, share, number)[2] for number in range(self.mix_in, iteration + 1))
        last = next(islice(mixed(len(pool), sizes, self._seed), iteration - self.mix_in, None))
        return [pool[index] for index in last]

    def reveal(self, group: Group) -> Group:
        """A pseudo-labelled group with its true answer, where that is known: for the record, behind the selection."""
        if group.problem.label != PSEUDO:
            return group
        return replace(group, problem=replace(group.problem, truth=self._truths.get(group.problem.id)))

    def in_words(self) -> str | None:
        """What is mixed in, and from when on; None when nothing is to be."""
        if not self._unlabelled:
            return None
        answers = "true answers"
        if self.config.unlabelled == PSEUDO:
            gate = f"share {self.config.min_share:g} or more, lead {self.config.min_margin:g} or more"
            answers = f"pseudo-labels by {self.config.vote} vote ({gate})"
        when = f"from iteration {self.mix_in + 1} on" if self.mix_in < self.iterations else "in no iteration"
        return f"{len(self.labelled)} labelled, and {when} {len(self._unlabelled)} unlabelled with {answers}"


def first_mixed(share: float, iterations: int) -> int:
    """The first iteration, from 0, that has at least `share` of all iterations before it."""
    # A product such as 0.1 * 30 may be a little more than the whole number that it stands for.
    return math.ceil(share * iterations - 1e-9)


def interval(problems: Sequence[Problem], share: float | int, iteration: int, seed: int) -> list[Problem]:
    """The problems of one iteration: the next `share` (or number) of the labelled set, reshuffled after each full pass.

    A function of its arguments alone, so a resumed run sees the same data. Every problem appears once in each pass;
    the last part of a pass may be smaller.
    """
    number, begin, size = _part(len(problems), share, iteration)
    order = list(range(len(problems)))
    random.Random(f"interval/{seed}/{number}").shuffle(order)
    return [problems[index] for index in order[begin : begin + size]]


def _part(total: int, share: float | int, iteration: int) -> tuple[int, int, int]:
    """Pass, beginning within it, and size of an iteration's part of `total` labelled problems."""
    count = share if isinstance(share, int) else max(1, round(share * total))
    count = min(count, total)
    parts = -(-total // count)
    begin = (iteration % parts) * count
    return iteration // parts, begin, min(count, total - begin)


def mixed(total: int, sizes: Iterable[int], seed: int) -> Iterator[list[int]]:
    """Parts of `sizes` (each at most `total`) of a pool of `total` problems, as indices, reshuffled after each pass.

    The parts laid end to end visit every problem once in each pass. A pass may end within a part; the next one then
    begins with problems that the part has not met, so that none is twice in a part.
    """
    waiting: list[int] = []
    number = 0
    for size in sizes:
        part, waiting = waiting[:size], waiting[size:]
        if len(part) < size:
            order = list(range(total))
            random.Random(f"mixed/{seed}/{number}").shuffle(order)
            number += 1
            met = set(part)
            first = list(islice((index for index in order if index not in met), size - len(part)))
            part += first
            taken = set(first)
            waiting = [index for index in order if index not in taken]
        yield part
