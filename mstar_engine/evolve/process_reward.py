"""The stages that make a process reward model: solutions, Monte Carlo step labels, fitting, and judging it.

Everything is on disk before the next is waited for: solutions group by group, labels problem by problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mstar_engine.config import RunConfig
from mstar_engine.data.files import limits_of, preprocessed
from mstar_engine.evolve.evaluate import TINY
from mstar_engine.evolve.methods import METHODS
from mstar_engine.evolve.policy import Policy
from mstar_engine.evolve.sweep_metric import NEED_SCORES
from mstar_engine.models.backbone import backbone_of
from mstar_engine.models.loading import blank_model, device_of, load_config_of
from mstar_engine.report.progress import Phase, Progress
from mstar_engine.reward.annotate import ProblemAnnotation, annotate
from mstar_engine.reward.answers import judge
from mstar_engine.reward.forms import form_named
from mstar_engine.reward.label_file import LabelWriter, read_labels
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.reward.prm_checkpoint import load_prm, refuse_other_processor
from mstar_engine.rollout.stats import RolloutStats
from mstar_engine.run_directory import RunDirectory
from mstar_engine.train.prm import StepQuality, class_balance, fit_prm, new_prm, save_prm, step_examples, step_quality
from mstar_engine.train.schedule import schedule_of
from mstar_engine.types import Group, LabelledSolution, Problem, SamplingParams

SETS = ("train", "held_out")
POLICY = "policy"
OUR_FORMS = {"label_tokens": "mstar", "two_class": "mstar_two_class", "scalar": "mstar_scalar"}
_COSTS = ("drawn", "prefill_tokens", "decode_tokens", "seconds")


def labels_path(run: Path, name: str) -> Path:
    """Where a run keeps the labelled steps of the problem set `name`, "train" or "held_out"."""
    return run / "annotations" / f"{name}.parquet"


def prm_path(run: Path) -> Path:
    """Where a run keeps the process reward model that it fitted."""
    return run / "checkpoints" / "prm"


class ProcessReward:
    """The annotate and prm stages of one run; `problems` by the names in SETS."""

    def __init__(
        self, config: RunConfig, run: RunDirectory, problems: dict[str, Sequence[Problem]], progress: Progress
    ) -> None:
        self.config = config
        self.run = run
        self.problems = problems
        self.progress = progress

    def annotate(self, policy: Policy) -> None:
        """Label the steps of fresh solutions of both problem sets by completions of the warmed-up policy."""
        for number, name in enumerate(SETS):
            seed = (2**40 + 2 * self.config.seed * 1_000_003 + number) % 2**63
            groups = self._solutions(policy, name, seed)
            self._labels(policy, name, groups, (seed + 2**41) % 2**63)

    def fit(self, policy_processor: Any) -> None:
        """Fit the process reward model to the labels, judge it on the held-out ones, and save it."""
        config, prm_config = self.config, self.config.prm
        steps, form = config.steps, OUR_FORMS[prm_config.head]
        start = prm_config.model_name_or_path
        path = self.run.path / "checkpoints" / "warmup" if start == POLICY else Path(start)
        where = f"prm.model_name_or_path={start}"
        prm = new_prm(
            path,
            form,
            where,
            seed=config.seed,
            dtype=config.dtype,
            attn_implementation=config.model.attn_implementation,
            trust_remote_code=_trusted(config),
            device=device_of(config.model.device),
            delimiter=steps.delimiter,
            max_steps=steps.max_steps,
            reduction=prm_config.reduction,
            system=config.prompts.system or None,
            template=config.prompts.template,
        )
        refuse_other_processor(prm.processor, policy_processor, where)
        share_images(prm, config)
        solutions, held_out = (self.read(name, prm.layout.tokenizer) for name in SETS)
        examples = step_examples(prm, solutions, prm_config.targets)
        size = prm_config.per_device_train_batch_size
        total = prm_config.num_train_epochs * -(-len(examples) // size)
        with self.progress.phase("prm: fit", total, "steps") as phase:
            loss = fit_prm(
                prm,
                examples,
                lambda horizon: schedule_of(
                    prm_config.learning_rate, prm_config.lr_scheduler_type, prm_config.warmup_steps, horizon
                ),
                epochs=prm_config.num_train_epochs,
                batch_size=size,
                weight_decay=prm_config.weight_decay,
                seed=config.seed,
                progress=lambda step: phase.advance(note=f"loss {step.loss:.3f}"),
                max_tokens=config.train.max_tokens or None,
                bf16=config.train.bf16,
                gradient_checkpointing=config.train.gradient_checkpointing,
            )
        quality = step_quality(prm, held_out, solutions)
        save_prm(prm_path(self.run.path), prm, form)
        self.fitted(solutions, loss, quality)

    def fitted(self, solutions: Sequence[LabelledSolution], loss: float, quality: StepQuality) -> None:
        """Say how the fitting went, in the journal and on the terminal."""
        config, counted = self.config.prm, class_balance(solutions)
        share = counted.positive / counted.steps
        self.run.journal.append(
            "prm",
            model=config.model_name_or_path,
            head=config.head,
            targets=config.targets,
            labels=counted.steps,
            problems=len({one.problem.id for one in solutions}),
            responses=len(solutions),
            balance=share,
            loss=loss,
            held_out=quality,
        )
        auc, f1 = ("undefined" if value is None else f"{value:.3f}" for value in (quality.auc, quality.f1))
        self.progress.say(
            f"prm: {counted.steps:,} labels, {100 * share:.0f}% right; held out: step AUC {auc}, F1 {f1}, "
            f"macro-F1 {quality.macro_f1:.3f}"
        )

    def read(self, name: str, tokenizer: Any) -> list[LabelledSolution]:
        """The labelled solutions of a problem set, with their images. ValueError when there are none."""
        path = labels_path(self.run.path, name)
        if not path.exists():
            raise ValueError(f"{path} is missing; the prm stage needs the annotate stage before it")
        found = read_labels(path, tokenizer, {problem.id: problem for problem in self.problems[name]})
        if not found:
            raise ValueError(f"{path} holds no solution; the policy wrote none with a step")
        return found

    def summary(self) -> dict[str, Any] | None:
        """What summary.json says of the process reward model; None when the run has fitted none."""
        event = self.run.journal.last("prm")
        if event is None:
            return None
        fields = {key: value for key, value in event.items() if key not in ("time", "event")}
        costs = [past for past in self.run.journal.events if past["event"] == "annotate"]
        spent = {key: sum(past[key] for past in costs) for key in _COSTS}
        annotate = self.config.annotate
        return {**fields, "annotation": {"mode": annotate.mode, "completions": annotate.completions, **spent}}

    def _solutions(self, policy: Policy, name: str, seed: int) -> list[Group]:
        """Judged solutions of a problem set, sorted by problem."""
        annotate, problems = self.config.annotate, self.problems[name]
        params = SamplingParams(
            n=annotate.solutions,
            temperature=annotate.temperature,
            max_tokens=self.config.rollout.max_completion_length,
            seed=seed,
        )
        with self.run.rollout_writer(0, f"solutions_{name}") as writer:
            missing = [problem for problem in problems if problem.id not in writer.finished]
            with self.progress.phase(f"annotate: solutions, {name}", len(problems), "problems") as phase:
                phase.advance(len(problems) - len(missing))
                for batch in policy.engine.generate_batches(missing, params) if missing else ():
                    judged = [judge(group) for group in batch]
                    writer.write(*judged)
                    responses = [response for group in judged for response in group.responses]
                    phase.advance(
                        len(judged),
                        tokens=sum(len(response.token_ids) for response in responses),
                        sampled=len(responses),
                        accepted=sum(bool(response.correct) for response in responses),
                    )
            writer.finish()
            return writer.groups({problem.id: problem for problem in problems})

    def _labels(self, policy: Policy, name: str, groups: Sequence[Group], seed: int) -> None:
        """Label the steps of the groups that are not labelled yet."""
        config, annotating = self.config, self.config.annotate
        params = SamplingParams(
            temperature=annotating.temperature, max_tokens=config.rollout.max_completion_length, seed=seed
        )
        with LabelWriter(labels_path(self.run.path, name)) as writer:
            missing = [group for group in groups if group.problem.id not in writer.finished]
            with self.progress.phase(f"annotate: steps, {name}", len(groups), "problems") as phase:
                phase.advance(len(groups) - len(missing))
                cost = _Cost(phase, policy)
                try:
                    for batch in annotate(
                        policy.engine,
                        missing,
                        params,
                        mode=annotating.mode,
                        completions=annotating.completions,
                        delimiter=config.steps.delimiter,
                        max_steps=config.steps.max_steps,
                    ):
                        writer.write(*(results for plan in batch if (results := plan.results())))
                        cost.add(batch)
                finally:
                    self.run.journal.append("annotate", set=name, **cost.fields())
            labels = pq.read_table(writer.finish(), columns=["labels"])["labels"].to_pylist()
        right = [label > 0 for one in labels for label in one]
        share = f", {100 * sum(right) / len(right):.0f}% of them right" if right else ""
        self.progress.say(f"annotate: {name}: {len(right):,} steps of {len(labels):,} solutions labelled{share}")


class _Cost:
    """What annotation has cost in this sitting, and a guess at what is to come, on the progress line."""

    def __init__(self, phase: Phase, policy: Policy) -> None:
        self.phase = phase
        self.policy = policy
        self.problems = self.drawn = 0
        policy.engine.stats = RolloutStats()

    def add(self, batch: Sequence[ProblemAnnotation]) -> None:
        """Some problems are done."""
        drawn = sum(plan.drawn for plan in batch)
        self.problems += len(batch)
        self.drawn += drawn
        left = (self.phase.total or 0) - self.phase.done - len(batch)
        to_go = round(self.drawn / self.problems * left)
        note = f"{self.drawn:,} completions" + (f", about {to_go:,} to go" if left else "")
        tokens = self.policy.engine.stats.sampled_tokens - self.phase.tokens
        self.phase.advance(len(batch), tokens=max(0, tokens), note=note)

    def fields(self) -> dict[str, Any]:
        """For the journal."""
        stats = self.policy.engine.stats
        return {
            "drawn": self.drawn,
            "prefill_tokens": stats.prefill_tokens + stats.extend_tokens,
            "decode_tokens": stats.decode_tokens,
            "seconds": round(self.phase.seconds, 3),
        }


def scoring_model(config: RunConfig, run: Path, policy_processor: Any) -> ProcessRewardModel | None:
    """The process reward model of a run: the one it fitted, else the checkpoint it names, else None.

    ValueError when it reads other tokens or images than the policy.
    """
    prm = config.prm
    fitted = prm_path(run)
    if not fitted.exists() and prm.model_name_or_path == POLICY:
        return None
    options: dict[str, Any] = {
        "delimiter": config.steps.delimiter,
        "max_steps": config.steps.max_steps,
        "reduction": prm.reduction,
    }
    form = None if fitted.exists() or prm.form == "auto" else prm.form
    scorer = load_prm(
        fitted if fitted.exists() else prm.model_name_or_path,
        form=form,
        policy_processor=policy_processor,
        dtype=config.dtype,
        attn_implementation=config.model.attn_implementation,
        device=device_of(config.model.device),
        trust_remote_code=_trusted(config),
        **options,
    )
    share_images(scorer, config)
    return scorer


def _trusted(config: RunConfig) -> bool:
    """Whether a process reward model may run code: the policy's own, where that is trusted."""
    return config.model.trust_remote_code and config.prm.model_name_or_path == POLICY


def share_images(prm: ProcessRewardModel, config: RunConfig) -> None:
    """Let a process reward model read the images that were preprocessed for the policy."""
    kept = preprocessed(config.data)
    if kept is not None:
        prm.encoder.keep_images(kept, limits_of(config.data))


def check_process_reward(config: RunConfig, run: Path) -> None:
    """Refuse, before any work, what the stages annotate and prm or the scoring could not do. ValueError names the key.

    Selection, a vote or a choice of temperature by score without a scorer; labels that no stage will have made; a
    process reward model that is not there, whose form is none, or that a policy's family could not be.
    """
    stages, name = config.stages, config.prm.model_name_or_path
    can = "prm" in stages or prm_path(run).exists() or name != POLICY
    chosen, samples = config.temperature, METHODS[config.evolve.method].imitates == "selected"
    for what, needs_scores, otherwise in (
        (f"select.kind={config.select.kind}", config.select.needs_scores, "select.kind=all or random"),
        (f"prompts.vote={config.prompts.vote}", config.prompts.needs_scores, "prompts.vote=majority"),
        (
            f"temperature.metric={chosen.metric}",
            chosen.controller != "fixed" and chosen.metric in NEED_SCORES,
            "temperature.metric=pass_at_k or balance, or temperature.controller=fixed",
        ),
    ):
        if "evolve" in stages and samples and needs_scores and not can:
            raise ValueError(
                f"{what}: it needs step scores; add the stages annotate and prm, name a process reward model in "
                f"prm.model_name_or_path, or choose {otherwise}"
            )
    if "prm" in stages and "annotate" not in stages and not labels_path(run, "train").exists():
        raise ValueError(
            f"stages: prm needs labels, and {labels_path(run, 'train')} is missing; add annotate before it"
        )
    if "prm" in stages and name == POLICY and config.model.model_name_or_path != TINY:
        trust = config.model.trust_remote_code
        policy = load_config_of(config.model.model_name_or_path, trust_remote_code=trust)
        backbone_of(blank_model(policy, trust_remote_code=trust))  # refuses a family that could not score, by name
    if config.prm.form != "auto":
        form_named(config.prm.form, f"prm.form={config.prm.form}")
    if name != POLICY:
        load_config_of(name, "prm.model_name_or_path")
