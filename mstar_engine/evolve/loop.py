"""The self-evolving loop (paper section 2): generate, judge, select, improve, measure, again.

An iteration is a refresh of the data: the optimizer, its step count and its clock are the run's, unless the method says
otherwise. Every finished group is on disk before the next is waited for, and each iteration ends with a checkpoint, so
a run that is stopped anywhere goes on where it was and ends with the same bits.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mstar_engine.config import RunConfig
from mstar_engine.evolve.examples import reference_example, selected_examples
from mstar_engine.evolve.measure import measure_policy
from mstar_engine.evolve.methods import METHODS
from mstar_engine.evolve.policy import Policy
from mstar_engine.evolve.prompts import Prompts
from mstar_engine.evolve.pseudo_labels import pseudo_label, pseudo_summary
from mstar_engine.evolve.sweep import Sweep
from mstar_engine.evolve.sweep_metric import SweepMetric
from mstar_engine.evolve.temperature import build_controller
from mstar_engine.evolve.verdict_counts import compared_since, counts_by_reason
from mstar_engine.journal import plain
from mstar_engine.report.progress import Phase, Progress
from mstar_engine.reward import latex
from mstar_engine.reward.answers import judge
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.reward.select import select
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import SweepSummary
from mstar_engine.train.trainer import StepStats
from mstar_engine.types import PSEUDO, Estimate, Group, Problem, SamplingParams, TrainingExample

KEPT_CHECKPOINTS = 2


class Evolution:
    """Runs the iterations of one run over its labelled problems and, where they are mixed in, its unlabelled ones.

    `entries` holds a summary entry for each iteration that is over; `measured` is called with each new one, `stepped`
    after each optimizer step with its number (from 1, over all iterations). `prm` scores responses for the selection,
    and on the validation problems; it stays as it is.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        policy: Policy,
        problems: Sequence[Problem],
        validation: Sequence[Problem],
        progress: Progress,
        measured: Callable[[dict[str, Any]], None] = lambda entry: None,
        prm: ProcessRewardModel | None = None,
        stepped: Callable[[int, StepStats], None] = lambda number, step: None,
        unlabelled: Sequence[Problem] = (),
    ) -> None:
        self.config = config
        self.run = run
        self.policy = policy
        self.method = METHODS[config.evolve.method]
        self.problems = problems
        self.prompts = Prompts(config, problems, unlabelled)
        self.validation = validation
        self.progress = progress
        self.measured = measured
        self.prm = prm
        self.stepped = stepped
        self.entries: list[dict[str, Any]] = []
        self.metric = SweepMetric.of(config)
        self.controller = build_controller(config.temperature, self.metric)
        self.temperature = config.rollout.temperature

    def resume(self) -> int:
        """Go back to where the run stopped: the newest checkpoint, measured if it was not; the iteration to do next.

        A checkpoint is written when an iteration has trained, its journal event when it has been measured.
        """
        fields = [event for event in self.run.journal.events if event["event"] == "iteration"]
        self.entries = [
            {key: value for key, value in event.items() if key not in ("time", "event")} for event in fields
        ]
        trained = self._trained()
        if trained:
            state = self.policy.restore(trained[-1])
            self.controller.restore(state["controller"])
            self.temperature = state["entry"]["temperature"]
            if state["entry"]["iteration"] > len(self.entries):
                self._measure(state["entry"])
        return len(self.entries)

    def iterate(self, iteration: int) -> None:
        """Do one iteration. Interrupted, it can be done again: no finished group is sampled twice."""
        begun, compared = time.perf_counter(), latex.counts()
        sweep, problems = None, self.prompts.problems(iteration)
        if self.method.imitates == "reference":
            examples = [reference_example(problem, self.policy.encoder) for problem in problems]
            groups, sampling = [], {"tokens_per_second": None, "sample_seconds": 0.0}
        else:
            sweep = self._choose_temperature(iteration)
            groups, sampling = self._generate(iteration, problems)
            # A pseudo-label is the policy's own opinion; what it makes of a response says nothing about a temperature.
            known = [group for group in groups if group.problem.label != PSEUDO]
            self.controller.observe(iteration, self.temperature, known)
            examples = selected_examples(groups)
        loss = self._improve(iteration, examples)
        responses = [response for group in groups for response in group.responses]
        entry = {
            "iteration": iteration + 1,
            "problems": len(problems),
            "sampled": len(responses),
            "correct": sum(bool(response.correct) for response in responses),
            "reasons": counts_by_reason(responses),
            "kept": len(examples),
            "temperature": self.temperature,
            "sweep": None if sweep is None else plain(sweep),
            "entropy": float(np.mean([response.entropy.mean() for response in responses])) if responses else None,
            "length": float(np.mean([len(response.token_ids) for response in responses])) if responses else None,
            "loss": loss,
            "global_step": self.policy.trainer.global_step,
            "learning_rate": self.policy.trainer.schedule(max(0, self.policy.trainer.global_step - 1)),
            "seconds": round(time.perf_counter() - begun, 3),
            "latex": compared_since(compared),
            **sampling,
        }
        self.policy.save(self._checkpoint(iteration + 1), entry=entry, controller=self.controller.state())
        self._drop_old_checkpoints()
        self._measure(entry)

    def _choose_temperature(self, iteration: int) -> SweepSummary | None:
        """Choose this iteration's sampling temperature on validation problems, if that is due."""
        if not self.controller.due(iteration):
            return None
        rollout, config = self.config.rollout, self.config.temperature
        problems = self.validation[: config.problems or None]
        params = SamplingParams(
            n=config.n,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            min_p=rollout.min_p,
            max_tokens=rollout.max_completion_length,
            seed=sweep_seed(self.config.seed, iteration),
        )
        with self.progress.phase(f"iteration {iteration + 1}: temperature", len(problems), "problems") as phase:
            sweep = Sweep(
                self.policy.engine,
                problems,
                params,
                self.metric,
                folder=self.run.path / "rollouts",
                number=iteration + 1,
                prm=self.prm,
                phase=phase,
            )
            found = self.controller.choose(self.temperature, iteration, sweep)
        change = (
            f"stays {found.present:g}" if found.chosen == found.present else f"{found.present:g} -> {found.chosen:g}"
        )
        self.progress.say(
            f"iteration {iteration + 1}: temperature {change} ({found.controller}, {found.drawn:,} responses)"
        )
        self.temperature = found.chosen
        return found

    def _measure(self, entry: dict[str, Any]) -> None:
        """Measure the policy on the validation problems; the iteration is then over."""
        begun, number, evaluate = time.perf_counter(), entry["iteration"], self.config.evaluate
        compared = latex.counts()
        title = f"iteration {number}: measure"
        with (
            self.run.rollout_writer(number, "validation") as writer,
            self.progress.phase(title, len(self.validation), "problems") as phase,
        ):
            measured, _ = measure_policy(
                self.policy.engine,
                self.validation,
                max_tokens=self.config.rollout.max_completion_length,
                seed=self.config.seed,
                samples=evaluate.pass_at_k_n,
                k=evaluate.pass_at_k,
                reward_k=evaluate.reward_pass_at_k,
                temperature=evaluate.temperature,
                delimiter=self.config.steps.delimiter,
                max_steps=self.config.steps.max_steps,
                writer=writer,
                phase=phase,
                prm=self.prm,
            )
            phase.advance(0, note=measured.samples_in_words())
            self.progress.greedy = measured.greedy
        entry = {
            **entry,
            "greedy": plain(measured.greedy),
            "pass_at_1": plain(measured.pass_at_1),
            "pass_at_k": plain(measured.pass_at_k),
            "k": evaluate.pass_at_k,
            "reward_pass_at_2": plain(measured.reward_pass_at_2) if measured.reward_pass_at_2 else None,
            "verifier": plain_table(measured.verifier),
            "dynamics": {name: plain(estimate) for name, estimate in measured.dynamics.items()},
            "latex": compared_since(compared, entry.get("latex")),
            "seconds": round(entry["seconds"] + time.perf_counter() - begun, 3),
        }
        self.run.journal.append("iteration", **entry)
        self.entries.append(entry)
        self.measured(entry)

    def _generate(self, iteration: int, problems: Sequence[Problem]) -> tuple[list[Group], dict[str, Any]]:
        """Sample, judge, select and keep the responses of this iteration's problems."""
        rollout = self.config.rollout
        params = SamplingParams(
            n=rollout.n,
            temperature=self.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            min_p=rollout.min_p,
            max_tokens=rollout.max_completion_length,
            seed=iteration_seed(self.config.seed, iteration),
        )
        title = f"iteration {iteration + 1}: sample"
        with self.run.rollout_writer(iteration + 1) as writer:
            groups = writer.groups({problem.id: problem for problem in problems})
            missing = [problem for problem in problems if problem.id not in writer.finished]
            with self.progress.phase(title, len(problems), "problems") as phase:
                phase.advance(len(problems) - len(missing))
                for batch in self.policy.engine.generate_batches(missing, params) if missing else ():
                    judged = self._judge(batch, params.seed)
                    writer.write(*judged)
                    groups += judged
                    responses = [response for group in judged for response in group.responses]
                    phase.advance(
                        len(judged),
                        tokens=sum(len(response.token_ids) for response in responses),
                        sampled=len(responses),
                        accepted=sum(bool(response.correct) for response in responses),
                    )
            writer.finish()
        groups.sort(key=lambda group: group.problem.id)
        stats = self.policy.engine.stats
        rate = round(stats.tokens_per_second, 1) if missing else None
        pseudo = pseudo_summary(groups, self.config.prompts)
        return groups, {
            "tokens_per_second": rate,
            "sample_seconds": round(stats.seconds, 3) if missing else 0.0,
            "pseudo": None if pseudo is None else plain(pseudo),
        }

    def _judge(self, batch: Sequence[Group], seed: int) -> list[Group]:
        """Sampled groups with scores, pseudo-labels, verdicts and selection. True answers come behind all of these."""
        chosen, prompts = self.config.select, self.config.prompts
        groups = {group.problem.id: group for group in batch}
        if self.prm is not None:
            every, voting = chosen.needs_scores, prompts.needs_scores
            scored = [group for group in batch if every or (voting and group.problem.label == PSEUDO)]
            if scored:
                groups |= {group.problem.id: group for group in self.prm.scored(scored)}
        judged = [judge(pseudo_label(group, prompts)) for group in groups.values()]
        return [self.prompts.reveal(select(group, chosen.kind, chosen.k, seed, chosen.alpha)) for group in judged]

    def _improve(self, iteration: int, examples: list[TrainingExample]) -> float | None:
        """Train on what was kept; the method's switches say from where and with which optimizer."""
        trainer = self.policy.trainer
        if self.method.start == "initial" and iteration > 0:
            self.policy.restore(self._checkpoints() / "warmup")
        if not self.method.inherit_optimizer:
            trainer.reset_optimizer()
        if self.method.clock == "iteration":
            trainer.reset_clock()
        loss, limit = None, self.config.train.max_steps
        if not examples or (limit >= 0 and trainer.global_step >= limit):
            return None
        # On a clock that starts again with each iteration, the steps of the earlier ones come before.
        before = sum(entry["global_step"] for entry in self.entries) if self.method.clock == "iteration" else 0
        train = self.config.train
        size = train.per_device_train_batch_size * train.gradient_accumulation_steps
        steps = -(-len(examples) // size) * train.num_train_epochs
        title = f"iteration {iteration + 1}: train"
        with self.policy.training(), self.progress.phase(title, steps, "steps") as phase:

            def stepped(step: StepStats) -> None:
                show_step(phase, step)
                self.stepped(before + step.step + 1, step)

            for epoch in range(iteration * train.num_train_epochs, (iteration + 1) * train.num_train_epochs):
                stats = trainer.train_epoch(
                    examples,
                    batch_size=size,
                    max_examples=train.per_device_train_batch_size,
                    seed=self.config.seed,
                    epoch=epoch,
                    max_steps=limit if limit >= 0 else None,
                    progress=stepped,
                )
                loss = stats.loss if stats.steps else loss
        return loss

    def _checkpoints(self) -> Path:
        return self.run.path / "checkpoints"

    def _checkpoint(self, iteration: int) -> Path:
        return self._checkpoints() / f"iteration_{iteration:04d}"

    def _trained(self) -> list[Path]:
        """The checkpoints of iterations, oldest first; unfinished ones have longer names."""
        found = [path for path in self._checkpoints().glob("iteration_*") if path.name[len("iteration_") :].isdigit()]
        return sorted(found, key=lambda path: int(path.name[len("iteration_") :]))

    def _drop_old_checkpoints(self) -> None:
        for path in self._trained()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(path)


def plain_table(table: Mapping[int, Mapping[str, Estimate]] | None) -> dict[str, Any] | None:
    """A verifier table in JSON's terms: K as text."""
    if table is None:
        return None
    return {str(k): {rule: plain(estimate) for rule, estimate in row.items()} for k, row in table.items()}


def show_step(phase: Phase, step: StepStats) -> None:
    """Count an optimizer step on the progress line."""
    phase.advance(tokens=step.tokens, note=f"loss {step.loss:.3f}")


def iteration_seed(seed: int, iteration: int) -> int:
    """The sampling seed of an iteration: a problem met again in a later pass is answered with fresh draws."""
    return (seed * 1_000_003 + iteration + 1) % 2**63


def sweep_seed(seed: int, iteration: int) -> int:
    """The sampling seed of the temperature sweep before an iteration, apart from those of training and measuring."""
    return (2**42 + iteration_seed(seed, iteration)) % 2**63


def evolve(evolution: Evolution, iterations: int) -> None:
    """Run the iterations that are not done yet."""
    for iteration in range(evolution.resume(), iterations):
        evolution.iterate(iteration)
