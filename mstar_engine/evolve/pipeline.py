"""The stages of a run over one run directory: pretrain, warmup, annotate, prm, evolve, evaluate, report.

A stage that is done is not done again; an interrupted one goes on from what it left on disk.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mstar_engine.config import RunConfig
from mstar_engine.data.benchmarks import Benchmark, own_sets
from mstar_engine.data.sources import DataSet
from mstar_engine.environment import device_name, versions
from mstar_engine.evolve.evaluate import TINY, Evaluation, final_of, last_evaluation, stages_left
from mstar_engine.evolve.loop import Evolution, evolve, plain_table, show_step
from mstar_engine.evolve.measure import Measurement, measure_policy, measurement
from mstar_engine.evolve.policy import ADAPTERS, Policy, evolve_schedule
from mstar_engine.evolve.process_reward import ProcessReward, scoring_model
from mstar_engine.evolve.prompts import Prompts
from mstar_engine.evolve.verdict_counts import latex_counted, latex_total
from mstar_engine.evolve.warmup import Warmup, sifted
from mstar_engine.models.loading import device_of
from mstar_engine.models.memory import give_back
from mstar_engine.models.prompts import PromptEncoder, open_image
from mstar_engine.models.tiny import build_tiny
from mstar_engine.report.html import write_report
from mstar_engine.report.progress import Progress
from mstar_engine.report.trackers.trackers import Trackers
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.rollout_file import read_rollouts
from mstar_engine.run_directory import RunDirectory
from mstar_engine.train.checkpoint import recover, save_checkpoint
from mstar_engine.train.pretrain import align, check, ground
from mstar_engine.train.trainer import StepStats
from mstar_engine.types import Problem
from mstar_kernels import _C


class Pipeline:
    """One run: its configuration, directory, data and, from the warm-up on, its policy. `benchmarks` are evaluated
    beside the sets of `data`."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        data: DataSet,
        progress: Progress,
        benchmarks: Sequence[Benchmark] = (),
    ) -> None:
        self.config = config
        self.benchmarks = benchmarks
        self.run = run
        self.progress = progress
        self.data = data
        self.summary: dict[str, Any] = {"warmup": None, "prm": None, "evolve": [], "final": None, "evaluation": None}
        self.summary["seconds"] = {}
        self.rewards = ProcessReward(
            config,
            run,
            {"train": data.train[: config.annotate.problems], "held_out": data.validation[: config.annotate.held_out]},
            progress,
        )
        self.trackers = Trackers(config, run, progress)
        self._policy: Policy | None = None
        for name in ("base", "warmup", "prm", "final"):
            recover(self._checkpoint(name))

    def execute(self) -> dict[str, Any]:
        """Do every configured stage that is not done yet; returns the summary, which is also written after each."""
        use_threads(self.config.threads)
        stages: dict[str, Callable[[], None]] = {
            "pretrain": self.pretrain,
            "warmup": self.warmup,
            "annotate": self.annotate,
            "prm": self.prm,
            "evolve": self.evolve,
            "evaluate": self.evaluate,
            "report": self.report,
        }
        self._read_back()
        left = stages_left(self.config.stages, self.run.journal)
        if left != ["report"]:
            self.run.journal.append("sitting", device=device_name(), versions=versions())
        with self.trackers if left != ["report"] else contextlib.nullcontext():
            for name in left:
                with self.run.journal.stage(name), latex_counted(self.run.journal, name):
                    stages[name]()
                self._write_summary()
        return self.summary

    def pretrain(self) -> None:
        """Build the tiny model and teach it to see. Any other checkpoint has had its pretraining."""
        if self.config.model.model_name_or_path != TINY:
            return
        model, processor = build_tiny(self.config.seed)
        config, seed = self.config.pretrain, self.config.seed
        with self.progress.phase("pretrain: see", config.ground_steps, "steps") as phase:
            ground(model, processor, config, seed, lambda loss: phase.advance(note=f"loss {loss:.3f}"))
        with self.progress.phase("pretrain: read", config.align_steps, "steps") as phase:
            align(model, PromptEncoder(processor), config, seed, lambda step: show_step(phase, step))
        with self.progress.phase("pretrain: check", config.check_steps, "steps") as phase:
            check(model, PromptEncoder(processor), config, seed, lambda loss: phase.advance(note=f"loss {loss:.3f}"))
        save_checkpoint(self._checkpoint("base"), model, processor)

    def warmup(self) -> None:
        """Supervised training, then the measurement that evolution starts from (paper section 2)."""
        if self._checkpoint("warmup").exists():  # trained in an earlier sitting, and not measured
            self._policy = self._warmed_up()
        else:
            warmup = Warmup(self.config, self.run, self.data, self.progress, self._warmup_step)
            self._policy = policy = Policy.load(self._base(), self.config, warmup.schedule(len(self.data.warmup)))
            warmup.train(policy)
            policy.save(self._checkpoint("warmup"))
        on_validation = self._measure("validation", self.data.validation, samples=self.config.evaluate.pass_at_k_n)
        self.summary["warmup"] = {
            "greedy": self._measure("test", self.data.test).greedy,
            "ood_greedy": self._measure("ood", self.data.ood).greedy if self.data.ood else None,
            "validation_greedy": on_validation.greedy,
            "pass_at_k": on_validation.pass_at_k,
            "dynamics": on_validation.dynamics,
            "sift": sifted(self.run.journal),
        }
        self.progress.greedy = on_validation.greedy
        self.run.journal.append("warmup", **self.summary["warmup"])
        self.trackers.place(0, self.summary["warmup"])

    def _warmup_step(self, step: StepStats) -> None:
        self.trackers.step("warmup", step.step + 1, step)

    def annotate(self) -> None:
        """Label the steps of the warmed-up policy's solutions by Monte Carlo completions."""
        self.rewards.annotate(self._warmed_up())

    def prm(self) -> None:
        """Fit the process reward model to the labels. The policy is loaded again behind it: two optimizers at a time
        would be one too many for a device that either fills."""
        processor, self._policy = self._warmed_up().processor, None
        gc.collect()
        give_back(device_of(self.config.model.device))
        self.rewards.fit(processor)

    def evolve(self) -> None:
        """The self-evolving iterations."""
        policy = self._warmed_up()
        policy.trainer.schedule = evolve_schedule(self.config.train)
        policy.engine.release()  # a cache sized to what was free leaves no room for another model
        prm = scoring_model(self.config, self.run.path, policy.processor)
        if prm is not None:
            self._score_warmup(prm)

        def measured(entry: dict[str, Any]) -> None:
            self.summary["evolve"] = evolution.entries
            self._write_summary()
            self.trackers.iteration(entry)

        def stepped(number: int, step: StepStats) -> None:
            self.trackers.step("train", number, step)

        data = self.data
        evolution = Evolution(
            self.config,
            self.run,
            policy,
            data.train,
            data.validation,
            self.progress,
            measured,
            prm,
            stepped,
            data.unlabelled,
        )
        evolve(evolution, self.config.evolve.iterations_of(len(self.data.train)))
        self.summary["evolve"] = evolution.entries
        policy.save(self._checkpoint("final"), export=True)

    def _score_warmup(self, prm: ProcessRewardModel) -> None:
        """Score what the warmed-up policy was measured by: the curves of the scorer begin where the others do."""
        path = self.run.path / "rollouts" / "validation_0000.parquet"
        if self.summary["warmup"] is None or self.run.journal.last("warmup_rewards") is not None or not path.exists():
            return
        groups = list(prm.scored(read_rollouts(path, {problem.id: problem for problem in self.data.validation})))
        evaluate, steps = self.config.evaluate, self.config.steps
        found = measurement(
            groups,
            k=evaluate.pass_at_k,
            reward_k=evaluate.reward_pass_at_k,
            scored=True,
            seed=self.config.seed,
            delimiter=steps.delimiter,
            max_steps=steps.max_steps,
        )
        self.run.journal.append(
            "warmup_rewards",
            reward_pass_at_2=found.reward_pass_at_2,
            verifier=plain_table(found.verifier),
            dynamics=found.dynamics,
        )
        self._read_back()
        self.trackers.place(0, {key: self.summary["warmup"][key] for key in ("reward_pass_at_2", "verifier")})

    def evaluate(self) -> None:
        """The policy that there is on problems that no stage has looked at."""
        policy, name, number = self._evaluated()
        prm = None
        if self.config.evaluate.n > 1:
            policy.engine.release()  # as before evolving
            prm = scoring_model(self.config, self.run.path, policy.processor)
        evaluation = Evaluation(self.config, self.run, self.progress, name, number, prm)
        found = evaluation.measure(policy.engine, [*own_sets(self.config, self.data), *self.benchmarks])
        self.summary["evaluation"] = found
        if (final := final_of(found)) is not None:
            self.summary["final"] = final
            self.run.journal.append("final", **final)
            self.trackers.place(number, final)

    def _evaluated(self) -> tuple[Policy, str, int]:
        """The policy to evaluate, what an evaluation calls it, and its iterations: the evolved one, else the warmed-up
        one, else the given checkpoint."""
        final = self._checkpoint("final")
        if final.exists():
            if self._policy is None:
                # Unmerged, as a run in one sitting measures them.
                start = final / ADAPTERS if self.config.model.lora_r else final
                self._policy = Policy.load(start, self.config, evolve_schedule(self.config.train))
            return self._policy, "final", len(self.summary["evolve"])
        if self.run.journal.done("warmup"):
            return self._warmed_up(), "warmup", 0
        if self._policy is None:
            self._policy = Policy.load(self._base(), self.config, evolve_schedule(self.config.train))
        return self._policy, "base", 0

    def report(self) -> None:
        """The HTML report of what the run directory holds."""
        self._write_summary()
        prompts = Prompts(self.config, self.data.train, self.data.unlabelled)
        # The report shows rollouts of the newest and of the first iteration.
        for iteration in {0, max(0, len(self.summary["evolve"]) - 1)} if self.data.train else ():
            for problem in prompts.problems(iteration)[:64]:
                for image in problem.images[:1]:
                    self.run.write_report_image(problem.id, open_image(problem, image))
        write_report(self.run.path)

    def _measure(self, name: str, problems: list[Problem], number: int = 0, samples: int = 0) -> Measurement:
        """Measure on the problem set `name` after iteration `number`; the rollouts are kept as `<name>_<number>`."""
        evaluate = self.config.evaluate
        assert self._policy is not None
        with (
            self.run.rollout_writer(number, name) as writer,
            self.progress.phase(f"measure: {name}", len(problems), "problems") as phase,
        ):
            measured, _ = measure_policy(
                self._policy.engine,
                problems,
                max_tokens=self.config.rollout.max_completion_length,
                seed=self.config.seed,
                samples=samples,
                k=evaluate.pass_at_k,
                reward_k=evaluate.reward_pass_at_k,
                temperature=evaluate.temperature,
                delimiter=self.config.steps.delimiter,
                max_steps=self.config.steps.max_steps,
                writer=writer,
                phase=phase,
            )
            phase.advance(0, note=f"{100 * measured.greedy.value:.1f}% right  {measured.samples_in_words()}".rstrip())
        return measured

    def _warmed_up(self) -> Policy:
        if self._policy is None:
            start = self._checkpoint("warmup")
            if not start.exists():  # evolving a given checkpoint without a warm-up stage
                self._policy = Policy.load(self._base(), self.config, evolve_schedule(self.config.train))
                self._policy.save(start)
            else:
                self._policy = Policy.load(start, self.config, evolve_schedule(self.config.train))
                self._policy.restore(start)
                self._policy.source = self._base()
        return self._policy

    def _read_back(self) -> None:
        """Take from the journal what earlier sittings measured."""
        for name in ("warmup", "final"):
            event = self.run.journal.last(name)
            if event is not None:
                self.summary[name] = {key: value for key, value in event.items() if key not in ("time", "event")}
        self.summary["evaluation"] = last_evaluation(self.run.journal)
        scored = self.run.journal.last("warmup_rewards")
        if scored is not None and self.summary["warmup"] is not None:
            added = ("reward_pass_at_2", "verifier", "dynamics")
            self.summary["warmup"] |= {key: scored[key] for key in added if key in scored}
        entries = {event["iteration"]: event for event in self.run.journal.events if event["event"] == "iteration"}
        self.summary["evolve"] = [
            {key: value for key, value in entries[i].items() if key not in ("time", "event")} for i in sorted(entries)
        ]

    def _write_summary(self) -> None:
        self.summary["prm"] = self.rewards.summary()
        self.summary["latex"] = latex_total(self.run.journal)
        self.summary["seconds"] = self.run.journal.seconds()
        self.run.write_summary(self.summary)

    def _base(self) -> str | Path:
        name = self.config.model.model_name_or_path
        return self._checkpoint("base") if name == TINY else name

    def _checkpoint(self, name: str) -> Path:
        return self.run.path / "checkpoints" / name


def use_threads(threads: int) -> None:
    """Threads for torch and for the C++ kernels; 0 is one a core."""
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    _C.set_num_threads(count)
