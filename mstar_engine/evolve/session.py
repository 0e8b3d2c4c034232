"""One sitting of a run, as the command line starts it: take the directory, do the stages, say how it went."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import transformers
from transformers import PretrainedConfig

from mstar_engine.config import RunConfig
from mstar_engine.data.benchmarks import Benchmark, read_benchmarks
from mstar_engine.data.checks import check_benchmarks, check_data, learns
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.data.sources import DataSet, load_data
from mstar_engine.evolve.evaluate import TINY, all_lines, check_evaluation, stages_left
from mstar_engine.evolve.pipeline import Pipeline
from mstar_engine.evolve.process_reward import check_process_reward
from mstar_engine.models.compatibility import refuse_unsupported
from mstar_engine.models.loading import (
    attention_of,
    blank_model,
    class_of,
    device_of,
    load_config_of,
)
from mstar_engine.models.lora import refuse_without_peft, target_layers
from mstar_engine.models.sequence_limit import sequence_limit
from mstar_engine.models.tiny import tiny_config
from mstar_engine.models.vision_tower import freeze_vision_tower
from mstar_engine.report.progress import Progress
from mstar_engine.reward import latex
from mstar_engine.reward.answer_rules import use_answers
from mstar_engine.reward.gold_check import refuse_unreadable, unusable
from mstar_engine.run_directory import RunDirectory
from mstar_engine.train.liger import use_liger


def start(config: RunConfig, resume: bool) -> int:
    """Do or continue the run of `config`; returns the exit status."""
    quiet()
    warnings.filterwarnings("ignore", category=FutureWarning)
    counted: dict[str, Quarantine] = {}
    data, benchmarks = read_data(config, Path(config.output_dir), counted)
    for name, quarantine in counted.items():
        if quarantine.total:
            print(f"mstar_engine: {name}: {quarantine.in_words()}; listed in {config.output_dir}", flush=True)
    check(config, data, benchmarks)
    with RunDirectory.create_or_resume(config, resume) as run:
        complete = set(stages_left(config.stages, run.journal)) <= {"report"} and run.journal.done(config.stages[-1])
        summary = Pipeline(config, run, data, Progress(), benchmarks).execute()
    print(closing_lines(config, summary))
    if complete:
        print(f"this run was complete; for another: make run ARGS='seed={config.seed + 1} output_dir=runs/another'")
    return 0


def read_data(
    config: RunConfig, folder: Path | None = None, counted: dict[str, Quarantine] | None = None
) -> tuple[DataSet, list[Benchmark]]:
    """The problem sets and the benchmarks, judged as `answers` says; prints which of them stay strict under a variant.

    Rows that are set aside are named in files in `folder` (None: nowhere); `counted` gets their counts by set.
    """
    check_evaluation(config, Path(config.output_dir))
    latex.use(config.answers.latex_workers, config.answers.latex_timeout)
    listed = None if folder is None else folder / "quarantine.jsonl"
    needed = learns(config)
    data = load_data(config.data, config.seed, listed, train_needed=needed, counted=counted, unusable=unusable)
    listed = None if folder is None else folder / "quarantine_benchmarks.jsonl"
    benchmarks = read_benchmarks(config, listed, counted=counted, unusable=unusable)
    names = [field.name for field in fields(data)]
    sets = {f"{name} set": getattr(data, name) for name in names}
    sets |= {f"benchmark {one.name}": one.problems for one in benchmarks}
    sets, lines = use_answers(sets, config.answers)
    for line in lines:
        print(f"mstar_engine: {line}", flush=True)
    data = replace(data, **{name: sets[f"{name} set"] for name in names})
    return data, [replace(one, problems=sets[f"benchmark {one.name}"]) for one in benchmarks]


def check(config: RunConfig, data: DataSet, benchmarks: Sequence[Benchmark]) -> None:
    """Refuse, before a directory is taken, what the run could not do. ValueError names the key or the problem."""
    check_model(config)
    check_training(config)
    check_process_reward(config, Path(config.output_dir))
    check_data(data, config)
    check_answers(data)
    check_benchmark_problems(benchmarks, data)


def check_answers(data: DataSet) -> None:
    """Refuse, before a directory is taken, reference answers that their type cannot read or that cannot be compared."""
    for field in fields(data):
        refuse_unreadable(getattr(data, field.name), f"{field.name} set")


def check_benchmark_problems(benchmarks: Sequence[Benchmark], data: DataSet) -> None:
    """Refuse, before a directory is taken, benchmarks whose reference answers cannot be used or whose problems are
    learned from."""
    for one in benchmarks:
        refuse_unreadable(one.problems, f"benchmark {one.name}")
    check_benchmarks({f"evaluate.benchmarks.{one.name}": one.problems for one in benchmarks}, data)


def config_of(config: RunConfig) -> PretrainedConfig:
    """The config of the policy's model."""
    name = config.model.model_name_or_path
    return tiny_config() if name == TINY else load_config_of(name, trust_remote_code=config.model.trust_remote_code)


def check_model(config: RunConfig) -> None:
    """Refuse, before a directory is taken, a model that is not there or that cannot do what is asked of it."""
    name = config.model.model_name_or_path
    model = config_of(config)
    refuse_unsupported(model)
    longest = sequence_limit(model)
    asked = config.rollout.max_completion_length
    if longest is not None and asked >= longest:
        raise ValueError(f"rollout.max_completion_length={asked}; allowed: below {longest}, the positions of {name}")
    device = device_of(config.model.device).type
    if config.rollout.torch_compile and config.rollout.decode == "auto" and device != "cuda":
        raise ValueError(
            f"rollout.torch_compile=true: decode steps on {device} have no fixed shape; allowed: false, or "
            "rollout.decode=fixed"
        )


def check_training(config: RunConfig) -> None:
    """Refuse, before a directory is taken, devices and precisions that cannot do what is asked. ValueError names the
    key."""
    train = config.train
    model, device = config_of(config), device_of(config.model.device)
    attention_of(config.model.attn_implementation, model, config.dtype, device)
    use_liger(train.use_liger_kernel, device)
    if config.dtype != "float32" and not train.bf16 and {"warmup", "prm", "evolve"} & set(config.stages):
        raise ValueError(
            f"model.dtype={config.dtype}: AdamW's steps are too small for such weights; allowed with stages that "
            "train: float32, or bfloat16 with train.bf16=true, which keeps float32 master weights"
        )
    kind = class_of(model)
    if train.gradient_checkpointing and kind is not None and not kind.supports_gradient_checkpointing:
        raise ValueError(
            f"train.gradient_checkpointing=true: model family {model.model_type!r} has none; allowed: false"
        )
    refuse_without_peft(config.model.lora_r)
    if config.model.lora_r or config.model.freeze_vision_tower:
        blank = blank_model(model, trust_remote_code=config.model.trust_remote_code)
        if config.model.freeze_vision_tower:
            freeze_vision_tower(blank)
        if config.model.lora_r:
            target_layers(blank, config.model.lora_target_modules)


def quiet() -> None:
    """No bars and notes of transformers' between ours."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def closing_lines(config: RunConfig, summary: dict[str, Any]) -> str:
    """What a run ends with on the terminal: accuracies before and after, seconds by stage, where the report is."""
    lines = []
    warmup, final = summary["warmup"], summary["final"]
    for key, title in (("greedy", "test"), ("ood_greedy", "out of distribution")):
        if warmup and final and warmup.get(key) and final.get(key):
            lines.append(f"greedy accuracy, {title}: {_percent(warmup[key])} -> {_percent(final[key])}")
    if summary.get("evaluation"):
        lines += all_lines(summary["evaluation"], Path(config.output_dir))
    spent = {name: seconds for name, seconds in summary["seconds"].items() if seconds >= 0.05}
    lines.append("seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items()))
    counts = summary.get("latex") or {}
    if counts.get("timeouts") or counts.get("crashes"):
        lines.append(
            f"LaTeX comparisons: of {counts['comparisons']:,}, {counts['timeouts']:,} were stopped at "
            f"answers.latex_timeout={config.answers.latex_timeout:g} seconds and {counts['crashes']:,} failed; such "
            "answers count as wrong"
        )
    report = Path(config.output_dir) / "report.html"
    if report.exists():
        lines.append(f"report:  {report}")
    return "\n".join(lines)


def _percent(estimate: dict[str, float] | Any) -> str:
    """An estimate as "61.3% (57.0-65.4)"."""
    get = estimate.get if isinstance(estimate, dict) else lambda key: getattr(estimate, key)
    return f"{100 * get('value'):.1f}% ({100 * get('low'):.1f} to {100 * get('high'):.1f}, n={get('items')})"
