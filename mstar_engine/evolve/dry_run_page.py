"""What a dry run prints: sections of aligned lines, from what it found out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from mstar_engine.config import RunConfig
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.evolve.columns import columns
from mstar_engine.evolve.memory_plan import MemoryPlan, Phase
from mstar_engine.evolve.prompt_sample import PromptSample
from mstar_engine.evolve.workload import Work
from mstar_engine.models.compatibility import KVShape
from mstar_engine.models.model_size import ModelSize
from mstar_engine.types import Problem

SETS = {
    "train": "train",
    "unlabelled": "unlabelled",
    "warmup": "warm-up",
    "validation": "validation",
    "test": "test",
    "ood": "out of distribution",
}
"""The problem sets, by their names in DataSet."""
SOURCES = 8
"""Sources of a set that are named."""


def model_lines(config: RunConfig, kind: str, size: ModelSize, shape: KVShape, weights: str) -> list[str]:
    """The policy: `kind` and `weights` in words, its size, and what it keeps of a token."""
    parameters = f"{size.parameters:,} parameters"
    if size.added:
        parameters += f", and {size.added:,} of adapters"
    if size.trained < size.parameters + size.added:
        parameters += f"; {size.trained:,} parameters are trained"
    kept = f"{shape.layers} layers x {shape.kv_heads} heads x {shape.head_dim}"
    lines = [
        ["model", config.model.model_name_or_path],
        ["", f"{kind}, {config.dtype}"],
        ["", parameters],
        ["K/V cache", f"{kept}: {shape.bytes_per_token:,} bytes a token"],
        ["weights", weights],
        ["threads", f"{config.threads or torch.get_num_threads()}"],
    ]
    return [line.removeprefix("  ") for line in columns(lines, "<<")]


def row_lines(sets: Mapping[str, Sequence[Problem]], counted: Mapping[str, Quarantine]) -> list[str]:
    """The problem sets and benchmarks by size and source, and what became of the rows of their files."""
    rows = [["", "rows", "set aside", "repeated", "left out", "problems", ""]]
    reasons = []
    for name, problems in sets.items():
        title, quarantine = SETS.get(name, name), counted.get(name)
        cells = ["", "", "", ""]
        if quarantine is not None:
            counts = (quarantine.rows, quarantine.total, quarantine.repeated, quarantine.left_out)
            cells = [f"{count:,}" for count in counts]
            why = ", ".join(f"{reason} {count:,}" for reason, count in quarantine.counts.most_common())
            reasons += [f"{title}: {why}"] if why else []
        held_out = "held out of train: " if "train" in counted and quarantine is None else ""
        rows.append([title, *cells, f"{len(problems):,}", held_out + _sources(problems)])
    lines = ["", "problem sets", *columns(rows, "<>>>>><")]
    return lines + [f"  set aside of {reason}" for reason in reasons]


def _sources(problems: Sequence[Problem]) -> str:
    """The sources of a set by size."""
    counts = Counter(problem.source for problem in problems)
    shown = [f"{source or 'no source'} {count:,}" for source, count in counts.most_common(SOURCES)]
    if len(counts) > SOURCES:
        shown.append(f"{len(counts) - SOURCES} others")
    return ", ".join(shown)


def prompt_lines(samples: Mapping[str, PromptSample]) -> list[str]:
    """What prompts of each set look like."""
    rows = [["", "encoded", "prompt tokens", "images", "tokens an image", "pixels an image"]]
    for name, one in samples.items():
        cells = [str(spread) for spread in (one.tokens, one.images, one.image_tokens, one.pixels)]
        rows.append([SETS.get(name, name), f"{one.encoded}", *cells])
    return ["", "prompts that were encoded (least / median / most)", *columns(rows, "<>>>>>")]


def memory_lines(config: RunConfig, plan: MemoryPlan) -> list[str]:
    """Memory by phase; nothing for a run that only reports."""
    phases, rollout = plan.phases(), config.rollout
    if not phases:
        return []
    largest = max(phases, key=lambda phase: phase.total)
    least = max(phases, key=lambda phase: phase.least)
    framework = " (1 to 3 GiB)" if plan.on_gpu else ""
    unit, scale = ("GiB", 2**30) if largest.total >= 2**29 else ("MiB", 2**20)
    head = ["", "weights", "optimizer", "gradients", "activations", "K/V cache", "features", "PRM", "total"]
    rows = [head, *([phase.name, *_cells(phase, scale)] for phase in phases)]
    bound = "" if rollout.kv_cache_memory == "auto" else f", at most {sized(rollout.kv_cache_memory)}"
    checkpointing = "checkpointed" if config.train.gradient_checkpointing else "all kept"
    return [
        "",
        f"memory at most, {unit}, as on a {'GPU' if plan.on_gpu else 'processor'}",
        *columns(rows, "<>>>>>>>>"),
        f"  at most   {sized(largest.total)} ({largest.name}); the framework itself comes on top{framework}",
        f"  at least  {sized(least.least)} ({least.name}); with less K/V cache fewer rows run at once",
        f"  K/V cache of {rollout.max_rows} rows, prompts of {plan.prompt.tokens:,} tokens (the longest encoded) that "
        f"responses share, completions of {rollout.max_completion_length:,}{bound}",
        f"  activations {checkpointing}, by widths and tokens (evolve/memory_plan.py has the formula)",
    ]


def _cells(phase: Phase, scale: int) -> list[str]:
    held = (phase.weights, phase.optimizer, phase.gradients, phase.activations, phase.cache, phase.features)
    return [f"{size / scale:,.1f}" if size else "" for size in (*held, phase.scorer, phase.total)]


def sized(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**29 else f"{size / 2**20:,.1f} MiB"


def work_lines(config: RunConfig, parts: Sequence[Work], typical: int) -> list[str]:
    """What is sampled and learned, in parts and in all; `typical`: tokens of a usual prompt."""
    if not parts:
        return []
    rows = [["", "responses", "steps", ""]]
    for part in parts:
        most = "" if part.exact else "<= "
        responses, steps = (f"{most}{count:,}" if count else "" for count in (part.responses, part.steps))
        rows.append([part.name, responses, steps, part.counted])
    responses, steps = sum(part.responses for part in parts), sum(part.steps for part in parts)
    longest = config.rollout.max_completion_length
    most = "" if all(part.exact for part in parts) else "<= "
    rows.append(["in all", f"{most}{responses:,}", f"{most}{steps:,}", ""])
    tokens = f"  at most {responses * longest:,} tokens ({longest:,} a response)"
    return [
        "",
        "work",
        *columns(rows, "<>><"),
        f"{tokens}; a prompt of {typical:,} tokens is read once for all of its responses",
    ]
