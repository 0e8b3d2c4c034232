"""One sitting of a run, as the command line starts it: take the directory, do the stages, say how it went."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from mstar_engine.config import RunConfig
from mstar_engine.data.benchmarks import Benchmark, read_benchmarks
from mstar_engine.data.checks import check_benchmarks, check_data, learns
from mstar_engine.data.sources import DataSet, load_data
from mstar_engine.evolve.evaluate import TINY, all_lines, check_evaluation, stages_left
from mstar_engine.evolve.methods import METHODS
from mstar_engine.evolve.pipeline import Pipeline
from mstar_engine.evolve.policy import prepare
from mstar_engine.evolve.process_reward import check_process_reward
from mstar_engine.evolve.prompts import Prompts
from mstar_engine.models.compatibility import probe, refuse_unsupported
from mstar_engine.models.loading import (
    attention_of,
    blank_model,
    class_of,
    device_of,
    load_config_of,
    load_model,
)
from mstar_engine.models.lora import refuse_without_peft, target_layers
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny, tiny_config
from mstar_engine.models.vision_tower import freeze_vision_tower
from mstar_engine.report.progress import Progress
from mstar_engine.reward.golds import refuse_unreadable
from mstar_engine.run_directory import RunDirectory
from mstar_engine.train.liger import use_liger


def start(config: RunConfig, resume: bool) -> int:
    """Do or continue the run of `config`; returns the exit status."""
    quiet()
    warnings.filterwarnings("ignore", category=FutureWarning)
    folder = Path(config.output_dir)
    check_evaluation(config, folder)
    data = load_data(config.data, config.seed, folder / "quarantine.jsonl", learns(config))
    benchmarks = read_benchmarks(config, folder / "quarantine_benchmarks.jsonl")
    check_model(config)
    check_training(config)
    check_process_reward(config, folder)
    check_data(data, config)
    check_answers(data)
    check_benchmark_problems(benchmarks, data)
    with RunDirectory.create_or_resume(config, resume) as run:
        complete = set(stages_left(config.stages, run.journal)) <= {"report"} and run.journal.done(config.stages[-1])
        summary = Pipeline(config, run, data, Progress(), benchmarks).execute()
    print(closing_lines(config, summary))
    if complete:
        print(f"this run was complete; for another: make run ARGS='seed={config.seed + 1} output_dir=runs/another'")
    return 0


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


def _config_of(config: RunConfig) -> PretrainedConfig:
    """The config of the policy's model."""
    name = config.model.model_name_or_path
    return tiny_config() if name == TINY else load_config_of(name, trust_remote_code=config.model.trust_remote_code)


def check_model(config: RunConfig) -> None:
    """Refuse, before a directory is taken, a model that is not there or that cannot do what is asked of it."""
    name = config.model.model_name_or_path
    model = _config_of(config)
    refuse_unsupported(model)
    longest = getattr(model.get_text_config(decoder=True), "max_position_embeddings", None)
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
    model, device = _config_of(config), device_of(config.model.device)
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
        blank = blank_model(model)
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
    if summary["evaluation"]:
        lines += all_lines(summary["evaluation"], Path(config.output_dir))
    spent = {name: seconds for name, seconds in summary["seconds"].items() if seconds >= 0.05}
    lines.append("seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items()))
    report = Path(config.output_dir) / "report.html"
    if report.exists():
        lines.append(f"report:  {report}")
    return "\n".join(lines)


def dry_run(config: RunConfig) -> int:
    """Load model and data, encode one prompt, and print what the run would do."""
    quiet()
    check_evaluation(config, Path(config.output_dir))
    data = load_data(config.data, config.seed, None, learns(config))
    benchmarks = read_benchmarks(config)
    check_model(config)
    check_training(config)
    check_process_reward(config, Path(config.output_dir))
    check_data(data, config)
    check_answers(data)
    check_benchmark_problems(benchmarks, data)
    if config.model.model_name_or_path == TINY:
        model, processor = build_tiny(config.seed)
    else:
        model, processor = load_model(
            config.model.model_name_or_path,
            dtype=config.dtype,
            attn_implementation=config.model.attn_implementation,
            device=device_of(config.model.device),
            trust_remote_code=config.model.trust_remote_code,
        )
    shape = probe(model)
    first = next(chain(data.train, data.test, data.ood, *(one.problems for one in benchmarks)))
    prompt = PromptEncoder(processor).encode(first)
    rollout, iterations = config.rollout, config.evolve.iterations_of(len(data.train))
    samples = METHODS[config.evolve.method].imitates == "selected"
    chunk = config.evolve.problems_of(len(data.train))
    prompts = Prompts(config, data.train, data.unlabelled)
    longest = len(prompt.input_ids) + rollout.max_completion_length
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or longest
    if longest > limit:
        raise ValueError(
            f"rollout.max_completion_length={rollout.max_completion_length}: with a prompt of {len(prompt.input_ids)} "
            f"tokens, allowed: at most {limit - len(prompt.input_ids)}"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    prepare(model, config)
    added = sum(parameter.numel() for parameter in model.parameters()) - parameters
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    optimizer = trained * ((18 if config.train.bf16 else 16) - shape.dtype.itemsize)  # moments, gradients, masters
    lines = {
        "model": f"{config.model.model_name_or_path}, {parameters:,} parameters, {shape.dtype}",
        "problems": f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test, "
        f"{len(data.ood)} out of distribution, {len(data.warmup)} for the warm-up",
        "prompt": f"{len(prompt.input_ids)} tokens (first problem), images included",
        "iterations": f"{iterations} x {chunk} problems"
        + (f" x {rollout.n} responses = {iterations * chunk * rollout.n:,} responses" if samples else ", not sampled"),
        "temperature": sweeps(config, iterations, len(data.validation)),
        "step labels": step_labels(config),
        "K/V cache": f"{shape.bytes_per_token:,} bytes a token; at most "
        f"{rollout.max_rows * longest * shape.bytes_per_token / 2**20:.0f} MiB for {rollout.max_rows} rows",
        "weights": f"{parameters * shape.dtype.itemsize / 2**20:.0f} MiB, with AdamW "
        f"{((parameters + added) * shape.dtype.itemsize + optimizer) / 2**20:.0f} MiB"
        + (f"; {trained:,} parameters are trained" if trained < parameters else ""),
        "threads": f"{config.threads or torch.get_num_threads()}",
    }
    if benchmarks:
        counts = ", ".join(f"{len(one.problems):,} {one.name}" for one in benchmarks)
        lines["benchmarks"] = f"{counts} problems, greedy" + (
            f" and {n} samples each" if (n := config.evaluate.n) else ""
        )
    if (mixed := prompts.in_words()) is not None:
        lines["prompts"] = mixed
    for name, value in lines.items():
        print(f"{name + ':':12} {value}")
    return 0


def sweeps(config: RunConfig, iterations: int, validation: int) -> str:
    """How the sampling temperature would be chosen and what that would sample, in words."""
    chosen = config.temperature
    if chosen.controller == "fixed":
        return f"{config.rollout.temperature:g}, fixed"
    problems = min(chosen.problems or validation, validation)
    share = 1.0 if chosen.controller == "grid" else chosen.budget
    arms, choices = len(chosen.grid), -(-iterations // chosen.every)
    return (
        f"{chosen.controller}, {chosen.low:g} to {chosen.high:g}: {choices} choices, each of at most "
        f"{int(share * arms * problems) * chosen.n:,} responses ({problems} problems)"
    )


def step_labels(config: RunConfig) -> str:
    """What annotation would sample, in words."""
    if "annotate" not in config.stages:
        return "none"
    annotate = config.annotate
    return (
        f"{annotate.problems} + {annotate.held_out} problems x {annotate.solutions} solutions, {annotate.mode}, "
        f"up to {annotate.completions} completions a step"
    )


def _percent(estimate: dict[str, float] | Any) -> str:
    """An estimate as "61.3% (57.0-65.4)"."""
    get = estimate.get if isinstance(estimate, dict) else lambda key: getattr(estimate, key)
    return f"{100 * get('value'):.1f}% ({100 * get('low'):.1f} to {100 * get('high'):.1f}, n={get('items')})"
