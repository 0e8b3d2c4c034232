"""The warm-up (paper section 2): supervised training that gives a policy its output format.

It imitates demonstrations that the data has, or what the base policy wrote itself when it was told the answers: sampled
on hinted prompts (`hint.py`), sifted (`sieve.py`), and learned without the hint, on the prompts of everything after.
Finished groups are on disk before the next is waited for; what is kept is a function of the configuration alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from mstar_engine.config import RunConfig
from mstar_engine.data.files import some
from mstar_engine.data.sources import DataSet
from mstar_engine.evolve.hint import HintedPrompts, can_hint
from mstar_engine.evolve.policy import Policy
from mstar_engine.evolve.sieve import FATES, GIVEN_AWAY, KEPT, NO_ANSWER, RIGHT, SURPLUS, TOO_SHORT, UNFINISHED, Sieve
from mstar_engine.journal import Journal
from mstar_engine.models.sequence_limit import sequence_limit
from mstar_engine.report.progress import Phase, Progress
from mstar_engine.reward.answers import judge
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import SiftSummary
from mstar_engine.train.collate import imitate
from mstar_engine.train.schedule import Schedule, schedule_of
from mstar_engine.train.trainer import StepStats
from mstar_engine.types import Group, Problem, SamplingParams, TrainingExample
from mstar_engine.yaml_text import one_line

SHOWN = 300
"""Characters of a response in an error."""
EVENT = "warmup_samples"
_ADVICE = {
    UNFINISHED: "raise rollout.max_completion_length, or ask for less in warmup.prompt",
    NO_ANSWER: "say in warmup.prompt how to end (`# Answer`), or start from a model that follows instructions",
    GIVEN_AWAY: "tell it in warmup.prompt not to, or change warmup.refuse",
    TOO_SHORT: "ask for steps in warmup.prompt, or lower warmup.min_steps",
}


class Warmup:
    """The training of one run's warm-up; `stepped` is called after each optimizer step."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        data: DataSet,
        progress: Progress,
        stepped: Callable[[StepStats], None] = lambda step: None,
    ) -> None:
        self.config = config
        self.run = run
        self.data = data
        self.progress = progress
        self.stepped = stepped
        self.sieve = Sieve.of(config)

    def train(self, policy: Policy) -> None:
        """Bring `policy`, the base, to where the evolution starts: its weights and moments, its clock at 0.

        ValueError, with the reasons by count, when no sampled response is fit to imitate.
        """
        sampled = self.config.warmup.source == "sampled"
        examples = self.sample(policy) if sampled else [imitate(p, policy.encoder) for p in self.data.warmup]
        policy.trainer.schedule = self.schedule(len(examples))
        self._imitate(policy, examples)
        # The evolution has its own clock; Adam's moments go on (paper section 3.1: one optimizer for the run).
        policy.trainer.reset_clock()

    def schedule(self, examples: int) -> Schedule:
        """The learning rates of a warm-up on so many examples."""
        warmup = self.config.warmup
        return schedule_of(
            warmup.learning_rate, warmup.lr_scheduler_type, warmup.warmup_steps, self._steps(max(1, examples))
        )

    def sample(self, policy: Policy) -> list[TrainingExample]:
        """What the base policy wrote with the answers before it and is fit to learn from, sorted by problem and sample.

        Goes on where an interrupted sitting stopped. The examples are of the problems as they are, without the hint.
        """
        warmup = self.config.warmup
        hintable = [problem for problem in self.data.train if can_hint(problem)]
        problems = some(hintable, warmup.problems, self.config.seed) if warmup.problems else hintable
        params = SamplingParams(
            n=warmup.n,
            temperature=warmup.temperature,
            max_tokens=self.config.rollout.max_completion_length,
            seed=warmup_seed(self.config.seed),
        )
        found = _Sifted(self.sieve)
        with self.run.rollout_writer(0, "warmup") as writer:
            found.add(writer.groups({problem.id: problem for problem in problems}))
            missing = [problem for problem in problems if problem.id not in writer.finished]
            with self.progress.phase("warm-up: sample", len(problems), "problems") as phase:
                phase.advance(len(problems) - len(missing))
                if missing:
                    encoder = HintedPrompts.of(policy.processor, self.config)
                    self._refuse_longer_than_positions(policy, encoder, missing)
                    for batch in policy.engine.generate_batches(missing, params, encoder=encoder):
                        writer.write(*found.add([judge(group) for group in batch]))
                        _show(phase, batch, found)
            writer.finish()
        examples = found.examples(warmup.max_examples, self.config.seed)
        summary = found.summary(len(self.data.train) - len(hintable))
        rate = policy.engine.stats.tokens_per_second if missing else None
        self.run.journal.append(EVENT, **asdict(summary), tokens_per_second=rate and round(rate, 1))
        if not examples:
            raise ValueError(found.why_nothing(self.config))
        self.progress.say(in_words(summary))
        return examples

    def _imitate(self, policy: Policy, examples: Sequence[TrainingExample]) -> None:
        """Supervised training, over as many epochs as the steps take."""
        steps, size = self._steps(len(examples)), self.config.warmup.per_device_train_batch_size
        with policy.training() as trainer, self.progress.phase("warm-up", steps, "steps") as phase:

            def stepped(step: StepStats) -> None:
                phase.advance(tokens=step.tokens, note=f"loss {step.loss:.3f}")
                self.stepped(step)

            epoch = 0
            while trainer.global_step < steps:
                trainer.train_epoch(
                    examples,
                    batch_size=self._batch,
                    max_examples=size,
                    seed=self.config.seed,
                    epoch=epoch,
                    max_steps=steps,
                    progress=stepped,
                )
                epoch += 1

    @property
    def _batch(self) -> int:
        """Examples of an optimizer step."""
        return self.config.warmup.per_device_train_batch_size * self.config.warmup.gradient_accumulation_steps

    def _steps(self, examples: int) -> int:
        """Optimizer steps on so many examples."""
        warmup = self.config.warmup
        if warmup.max_steps >= 0:
            return warmup.max_steps
        return max(1, round(warmup.num_train_epochs * examples / self._batch))

    def _refuse_longer_than_positions(self, policy: Policy, encoder: HintedPrompts, problems: list[Problem]) -> None:
        """A hinted prompt is longer than those the run was checked with: refuse before hours of sampling."""
        limit = sequence_limit(policy.model.config)
        longest = max(problems, key=lambda problem: len(encoder.text(problem)))
        tokens, more = len(encoder.encode(longest).input_ids), self.config.rollout.max_completion_length
        if limit is not None and tokens + more > limit:
            raise ValueError(
                f"warmup.prompt: problem {longest.id!r} takes {tokens} tokens in it, and "
                f"rollout.max_completion_length={more} more; allowed: {limit} together, the positions of the model"
            )


class _Sifted:
    """What sifting has found so far, group by group; memory holds what is kept and counts."""

    def __init__(self, sieve: Sieve) -> None:
        self.sieve = sieve
        self.fates: Counter[str] = Counter()
        self.problems = self.solved = 0
        self._kept: list[tuple[str, int, TrainingExample]] = []
        self._shown: dict[str, tuple[str, int, str]] = {}

    def add(self, groups: Sequence[Group]) -> list[Group]:
        """Judged groups; returns them with `selected` set."""
        sifted = []
        for group in groups:
            group, fates = self.sieve.sift(group)
            name = group.problem.id
            for response, fate in zip(group.responses, fates):
                self.fates[fate] += 1
                entry = (name, response.sample, response.text)
                self._shown[fate] = min(entry, self._shown.get(fate, entry))
                if fate == KEPT:
                    example = TrainingExample(problem=group.problem, response_ids=response.token_ids)
                    self._kept.append((name, response.sample, example))
            self.problems += 1
            self.solved += KEPT in fates
            sifted.append(group)
        return sifted

    def examples(self, most: int, seed: int) -> list[TrainingExample]:
        """What is kept, by problem and sample; of more than `most` (0: no limit) a draw, the others surplus."""
        kept = sorted(self._kept, key=lambda one: one[:2])
        if most and len(kept) > most:
            drawn = sorted(kept, key=lambda one: hashlib.sha256(repr((seed, *one[:2])).encode()).digest())[:most]
            self.fates[SURPLUS] += len(kept) - most
            self.fates[KEPT] = most
            kept = sorted(drawn, key=lambda one: one[:2])
        return [example for _, _, example in kept]

    def summary(self, without_gold: int) -> SiftSummary:
        """The funnel."""
        return SiftSummary(
            problems=self.problems,
            without_gold=without_gold,
            solved=self.solved,
            sampled=self.fates.total(),
            right=sum(self.fates[fate] for fate in RIGHT),
            kept=self.fates[KEPT],
            fates={fate: self.fates[fate] for fate in FATES if self.fates[fate]},
        )

    def why_nothing(self, config: RunConfig) -> str:
        """That nothing is left to imitate, why, an example, and what would help; one line."""
        if not self.fates:
            return "warm-up: no training problem has a reference answer that a prompt could show"
        fate, _ = self.fates.most_common(1)[0]
        name, sample, text = self._shown[fate]
        shown = one_line(text if len(text) <= SHOWN else text[:SHOWN] + "...")
        advice = _ADVICE.get(fate, "ask in another way (warmup.prompt), or draw more (warmup.n, warmup.problems)")
        counts = ", ".join(f"{count} {name}" for name, count in self.fates.most_common())
        return (
            f"warm-up: none of {self.fates.total()} responses to {self.problems} problems is fit to imitate: {counts} "
            f"(warmup.n={config.warmup.n}, rollout.max_completion_length={config.rollout.max_completion_length}); "
            f"{fate}, for one, problem {name!r}, sample {sample}: {shown!r}; {advice}"
        )


def _show(phase: Phase, batch: Sequence[Group], found: _Sifted) -> None:
    """Count sampled groups on the progress line."""
    responses = [response for group in batch for response in group.responses]
    phase.advance(
        len(batch),
        tokens=sum(len(response.token_ids) for response in responses),
        note=f"{sum(found.fates[fate] for fate in RIGHT):,} right, {found.fates[KEPT]:,} kept",
    )


def sifted(journal: Journal) -> dict[str, Any] | None:
    """The funnel of a run's warm-up (`SiftSummary`); None when it has sampled nothing."""
    event = journal.last(EVENT)
    return None if event is None else {one.name: event[one.name] for one in fields(SiftSummary)}


def in_words(summary: SiftSummary) -> str:
    """The funnel in one line."""
    lost = ", ".join(f"{count:,} {fate}" for fate, count in summary.fates.items() if fate != KEPT)
    ignored = f"; {summary.without_gold:,} problems have no answer to show" if summary.without_gold else ""
    return (
        f"warm-up: {summary.sampled:,} responses to {summary.problems:,} problems, {summary.right:,} right, "
        f"{summary.kept:,} kept" + (f" ({lost})" if lost else "") + ignored
    )


def warmup_seed(seed: int) -> int:
    """The sampling seed of the warm-up, apart from those of annotation, sweeps, iterations and measuring."""
    return (2**43 + seed * 1_000_003) % 2**63
