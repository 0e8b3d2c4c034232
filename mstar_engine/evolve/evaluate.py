"""The evaluate stage: a policy on the run's test sets and on benchmarks, greedy and with samples beside it.

A set's responses are kept group by group and its numbers when it is over, so an interrupted evaluation goes on where it
stopped. They are kept by the policy that wrote them: another one is measured anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from mstar_engine.config import RunConfig
from mstar_engine.data.benchmarks import OWN_SETS, Benchmark
from mstar_engine.environment import device_name, versions
from mstar_engine.evaluation_tables import metric_title, percent, write_tables
from mstar_engine.evolve.benchmark_metrics import benchmark_summary, mean_accuracies
from mstar_engine.evolve.measure import measure_policy
from mstar_engine.journal import Journal, read_events
from mstar_engine.prompt_template import PLAIN
from mstar_engine.report.progress import Progress
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import ALL, BenchmarkSummary, EvaluationSummary
from mstar_engine.types import Estimate
from mstar_engine.yaml_text import one_line

TINY = "tiny"
EVENT = "evaluation"
"""The journal's event for a set that is over: of which policy, and what was measured."""
_CHANGES_THE_POLICY = {"pretrain", "warmup", "evolve"}
_SUMMARY = TypeAdapter(BenchmarkSummary)


class Evaluation:
    """The evaluate stage of one run on one policy: "base", "warmup" or "final", after `iteration` iterations.

    `prm` scores the samples where a problem has several.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        progress: Progress,
        policy: str,
        iteration: int = 0,
        prm: ProcessRewardModel | None = None,
    ) -> None:
        self.config, self.run, self.progress = config, run, progress
        self.policy, self.iteration = policy, iteration
        self.prm = prm if config.evaluate.n > 1 else None

    def measure(self, engine: RolloutEngine, sets: Sequence[Benchmark]) -> EvaluationSummary:
        """Measure the sets that are not measured yet, and write the tables after each."""
        self.progress.greedy = None  # that of the validation problems is no news of these
        for one in sets:
            if one.name not in evaluation_of(self.run.journal, self.policy, self.iteration).benchmarks:
                self._measure(engine, one)
            self.write()
        return evaluation_of(self.run.journal, self.policy, self.iteration)

    def write(self) -> None:
        """Write `evaluation.parquet` and `evaluation.md` of what is measured."""
        config, found = self.config, evaluation_of(self.run.journal, self.policy, self.iteration)
        notes = {
            "model": config.model.model_name_or_path,
            "run": f"{config.output_dir}, seed {config.seed}, at most {config.rollout.max_completion_length} tokens",
            "prompts": prompts_in_words(config),
            "answers": answers_in_words(config),
            "device": device_name(),
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        write_tables(self.run.path, found, notes)

    def _measure(self, engine: RolloutEngine, one: Benchmark) -> None:
        config, evaluate, problems = self.config, self.config.evaluate, one.problems
        with (
            self.run.rollout_writer(self.iteration, f"{self.policy}_{one.name}") as writer,
            self.progress.phase(f"evaluate: {one.name}", len(problems), "problems") as phase,
        ):
            _, groups = measure_policy(
                engine,
                problems,
                max_tokens=config.rollout.max_completion_length,
                seed=config.seed,
                samples=evaluate.n,
                k=min(evaluate.pass_at_k, max(1, evaluate.n)),
                reward_k=min(evaluate.reward_pass_at_k, max(1, evaluate.n)),
                temperature=evaluate.temperature,
                delimiter=config.steps.delimiter,
                max_steps=config.steps.max_steps,
                writer=writer,
                phase=phase,
                prm=self.prm,
            )
            found = benchmark_summary(
                groups, order=one.order, published=one.published, scored=self.prm is not None, seed=config.seed
            )
            phase.advance(0, note=f"{100 * found.metrics[ALL]['greedy'].value:.1f}% right")
        self.run.journal.append(
            EVENT,
            name=one.name,
            policy=self.policy,
            iteration=self.iteration,
            n=evaluate.n,
            temperature=evaluate.temperature,
            found=found,
        )


def prompts_in_words(config: RunConfig) -> str:
    """How problems are put to the policy; numbers on other prompts are others."""
    system, template = config.prompts.system, config.prompts.template
    said = "the question" if template == PLAIN else one_line(template)
    return f"{said}, behind the system message {one_line(system)}" if system else said


def answers_in_words(config: RunConfig) -> str:
    """The rules of every column but that of the published ones."""
    answers = config.answers
    found = f", found by {', '.join(answers.extract)}" if answers.extract else ""
    lenient = "" if answers.variant == "strict" else ", which are lenient, where they can judge"
    return f"{answers.variant} rules{lenient}{found}"


def evaluation_of(journal: Journal, policy: str, iteration: int) -> EvaluationSummary:
    """What a run has measured of one policy."""
    events = [one for one in journal.events if one["event"] == EVENT]
    events = [one for one in events if (one["policy"], one["iteration"]) == (policy, iteration)]
    found = {one["name"]: _SUMMARY.validate_python(one["found"]) for one in events}
    averaged = {name: one for name, one in found.items() if name not in OWN_SETS}
    mean = mean_accuracies(averaged)
    return EvaluationSummary(
        policy=policy,
        iteration=iteration,
        n=events[-1]["n"] if events else 0,
        temperature=events[-1]["temperature"] if events else 1.0,
        benchmarks=found,
        averaged=tuple(averaged) if mean else (),
        mean=mean,
    )


def last_evaluation(journal: Journal) -> EvaluationSummary | None:
    """What a run has measured of the policy that it evaluated last; None when it has evaluated none."""
    event = journal.last(EVENT)
    return None if event is None else evaluation_of(journal, event["policy"], event["iteration"])


def final_of(found: EvaluationSummary) -> dict[str, Estimate | None] | None:
    """What the summary says of the evolved policy; None when it was not evolved, or there are no test problems."""
    if found.policy != "final" or "test" not in found.benchmarks:
        return None
    greedy = {name: one.metrics[ALL]["greedy"] for name, one in found.benchmarks.items()}
    return {"greedy": greedy["test"], "ood_greedy": greedy.get("ood")}


def stages_left(stages: Sequence[str], journal: Journal) -> list[str]:
    """The stages to do in a sitting: those that are not done, the report always, and evaluate also where the policy
    changes, or has changed since: it is another one then."""
    left = {name for name in stages if name == "report" or not journal.done(name)}
    done = [one["stage"] for one in journal.events if one["event"] == "stage" and one.get("state") == "done"]
    since = done[len(done) - done[::-1].index("evaluate") :] if "evaluate" in done else []
    if _CHANGES_THE_POLICY & {*left, *since}:
        left.add("evaluate")
    return [name for name in stages if name in left]


def check_evaluation(config: RunConfig, run: Path) -> None:
    """Refuse, before any work, to evaluate a policy that is not there, or one that is half evolved. ValueError."""
    if "evaluate" not in config.stages:
        return
    events, checkpoints = read_events(run / "journal.jsonl"), run / "checkpoints"
    begun = any(one["event"] == "stage" and one.get("stage") == "evolve" for one in events)
    if begun and "evolve" not in config.stages and not (checkpoints / "final").exists():
        raise ValueError(
            f"stages: {checkpoints / 'final'} is missing, evolve has begun; allowed: evolve before evaluate"
        )
    there = any((checkpoints / name).exists() for name in ("base", "warmup", "final"))
    if config.model.model_name_or_path == TINY and "pretrain" not in config.stages and not there:
        raise ValueError(
            f"model.model_name_or_path={TINY}: it is not pretrained yet; allowed with evaluate: the stage pretrain "
            "before it, or a checkpoint directory"
        )


def all_lines(found: EvaluationSummary, folder: Path) -> list[str]:
    """What a run says of its evaluation at its end: the accuracies over all problems of each set, and their mean."""
    tables = {f"{name} ({one.problems:,} problems)": one.metrics[ALL] for name, one in found.benchmarks.items()}
    if found.mean:
        tables[f"mean of {len(found.averaged)}"] = found.mean
    lines = [f"{name}: {_said(metrics)}" for name, metrics in tables.items()]
    return [*lines, f"tables:  {folder / 'evaluation.md'}"]


def _said(metrics: Mapping[str, Estimate]) -> str:
    """One line has room for the last Pass@K alone; the tables have all of them."""
    left_out = {name for name in metrics if name.startswith("unbiased")}
    left_out |= set([name for name in metrics if name.startswith("pass_at_")][1:-1])
    shown = {name: found for name, found in metrics.items() if name not in left_out}
    return ", ".join(f"{metric_title(name)} {percent(found)}" for name, found in shown.items())
