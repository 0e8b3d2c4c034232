"""Ablations: the presets of a table of the paper, side by side, over several seeds, from one shared warm-up a seed.

For each seed one run is brought to its process reward model; every preset then evolves a copy of it, so that the arms
of a seed share the warmed-up policy, its optimizer and the step scorer, and differ in what the preset says alone. An
arm is an ordinary run in a process of its own: what is done is not done again, what was interrupted goes on.

    <output_dir>/seed0/shared/  seed0/<preset>/  ...  <ablation>.json  <ablation>.md  <ablation>.svg
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mstar_engine.config import STAGES, RunConfig
from mstar_engine.config_parse import ConfigError, dump_config, flat_config, load_config
from mstar_engine.durable import FolderLock, replace_text
from mstar_engine.evolve.ablation_table import AblationTable, Arm, build_table
from mstar_engine.evolve.process_reward import check_process_reward
from mstar_engine.journal import read_events
from mstar_engine.presets import PRESETS, Ablation, ablation_named
from mstar_engine.report.intervals import interval_plot
from mstar_engine.run_directory import differences
from mstar_engine.yaml_text import parse_yaml

DEFAULT_RECIPE = "ablation"
SHARED = "shared"
_BEFORE = STAGES[: STAGES.index("evolve")]
# What the stages before the evolution depend on: `train` for the optimizer, `evaluate` for the first measurement.
_SECTIONS_BEFORE = ("model", "data", "pretrain", "warmup", "rollout", "steps", "annotate", "prm", "train", "evaluate")
_SECTIONS_BEFORE += ("prompts.system", "prompts.template")


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationOptions:
    """What the command line says besides the configuration: `jobs` arms at a time (0: as many as there are processors,
    one on a GPU), `results` a folder for copies of the outcome."""

    name: str
    seeds: int = 5
    jobs: int = 0
    results: str = ""


class AblationRuns:
    """The runs of one ablation: their configurations, folders and processes."""

    def __init__(
        self, options: AblationOptions, recipe: str | None, overrides: Sequence[str], say: Callable[[str], None]
    ) -> None:
        """Build every configuration, so that a mistake stops here. ValueError in one line."""
        self.options, self.say = options, say
        self.ablation = ablation_named(options.name)
        self.presets = list(dict.fromkeys([preset for _, preset in self.ablation.rows] + [self.ablation.reference]))
        _refuse_overridden(self.ablation, overrides)
        self.jobs, threads = _share_machine(options.jobs, overrides)
        recipe, common = recipe or DEFAULT_RECIPE, [*overrides, f"threads={threads}"]
        self.folder = Path(load_config(recipe, common).output_dir)
        self.configs: dict[tuple[int, str], RunConfig] = {}
        for seed in range(options.seeds):
            seeded = [*common, f"seed={seed}"]
            config = load_config(recipe, seeded)  # of no preset: the ablations of a folder share it
            _refuse_missing_stages(config)
            stages = [stage for stage in config.stages if stage in _BEFORE]
            self.configs[seed, SHARED] = self._placed(replace(config, stages=stages), seed, SHARED)
            for preset in self.presets:
                config = load_config(recipe, [*seeded, f"preset={preset}"])
                check_process_reward(config, self._path(seed, SHARED))
                stages = [stage for stage in config.stages if stage not in _BEFORE]
                self.configs[seed, preset] = self._placed(replace(config, stages=stages), seed, preset)
        for run, config in self.configs.items():
            _refuse_another(config, _SECTIONS_BEFORE if run[1] == SHARED else None)
        if options.results and Path(options.results).exists() and not Path(options.results).is_dir():
            raise ConfigError(f"results={options.results}: a file; allowed: a folder")
        self._children: set[subprocess.Popen] = set()
        self._starting = threading.Lock()
        self._stopping = False

    def run(self) -> dict[str, str]:
        """Do what is not done yet; returns the reason of each run that failed, by name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FolderLock(self.folder)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.folder} is in use by another ablation (process {error}); wait, or give another output_dir"
            ) from None
        try:
            return self._run()
        finally:
            lock.release()

    def _run(self) -> dict[str, str]:
        seeds = range(self.options.seeds)
        arms = [(seed, preset) for seed in seeds for preset in self.presets]
        failed = self._batch([(seed, SHARED) for seed in seeds], "warm-up and process reward model")
        ready = [(seed, preset) for seed, preset in arms if _name(seed, SHARED) not in failed]
        return failed | self._batch(ready, "arms")

    def table(self) -> AblationTable:
        """The outcome of the arms that are done."""
        found = []
        for (seed, preset), config in self.configs.items():
            path = Path(config.output_dir) / "summary.json"
            if preset != SHARED and path.exists():
                try:
                    summary = json.loads(path.read_text())
                except ValueError as error:
                    raise ValueError(f"{path}: {error}; remove {path.parent} to have this arm done again") from None
                if summary.get("final"):
                    found.append(Arm(preset=preset, seed=seed, summary=summary))
        return build_table(self.ablation, PRESETS, found)

    def circumstances(self) -> dict[str, Any]:
        """The date of the last arm, and the devices and versions of all, by their journals."""
        events = [
            event
            for (_, preset), config in self.configs.items()
            if preset != SHARED
            for event in read_events(Path(config.output_dir) / "journal.jsonl")
        ]
        sittings = [event for event in events if event["event"] == "sitting"]
        last = max((event["time"] for event in events), default=time.time())
        return {
            "date": datetime.date.fromtimestamp(last).isoformat(),
            "device": "; ".join(sorted({event["device"] for event in sittings})),
            "versions": sittings[-1]["versions"] if sittings else {},
        }

    def _batch(self, runs: Sequence[tuple[int, str]], what: str) -> dict[str, str]:
        """Run some configurations, `jobs` at a time."""
        begun, failed, done = time.monotonic(), {}, 0
        missing = [one for one in runs if not self._done(*one)]
        self.say(f"{self.options.name}: {what}: {len(missing)} of {len(runs)} runs to do, {self.jobs} at a time")
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for name, reason, seconds in pool.map(lambda one: self._one(*one), missing):
                    done += 1
                    if reason:
                        failed[name] = reason
                    left = (time.monotonic() - begun) / done * (len(missing) - done)
                    to_go = f", about {left / 60:.0f} min to go" if done < len(missing) else ""
                    self.say(
                        f"[{done}/{len(missing)}] {name}: {reason or self._outcome(name)} ({seconds:.0f} s){to_go}"
                    )
            except BaseException:
                self._stop()  # before the pool waits for what it has begun
                raise
        return failed

    def _stop(self) -> None:
        """End the processes; their runs go on from there next time."""
        with self._starting:
            self._stopping = True
            for child in self._children:
                child.terminate()

    def _one(self, seed: int, preset: str) -> tuple[str, str, float]:
        """One run in a process of its own: (name, why it failed or "", seconds)."""
        begun, name, config = time.monotonic(), _name(seed, preset), self.configs[seed, preset]
        directory = Path(config.output_dir)
        if self._stopping:
            return name, "not started", 0.0
        if preset != SHARED and not directory.exists():
            fork_run(self._path(seed, SHARED), directory, config)
        directory.parent.mkdir(parents=True, exist_ok=True)
        recipe = directory.with_name(f"{directory.name}.yaml")
        replace_text(recipe, dump_config(config))
        log = directory.with_name(f"{directory.name}.log")
        threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
        with open(log, "a") as output:
            command = [sys.executable, "-m", "mstar_engine.run", str(recipe), "--resume"]
            with self._starting:
                if self._stopping:
                    return name, "not started", 0.0
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | threads
                )
                self._children.add(child)
            status = child.wait()
            with self._starting:
                self._children.discard(child)
        lines = log.read_text(errors="replace").strip().splitlines()
        reason = "" if status == 0 else f"failed: {lines[-1] if lines else f'status {status}'} (see {log})"
        return name, reason, time.monotonic() - begun

    def _done(self, seed: int, preset: str) -> bool:
        """Whether a run has nothing left to do."""
        config = self.configs[seed, preset]
        journal = Path(config.output_dir) / "journal.jsonl"
        if not journal.exists():
            return False
        text = journal.read_text()
        return all(f'"stage":"{stage}","state":"done"' in text for stage in config.stages)

    def _outcome(self, name: str) -> str:
        summary = json.loads((self.folder / name / "summary.json").read_text())
        stage = summary.get("final") or summary.get("warmup")
        return f"test {100 * stage['greedy']['value']:.1f}%" if stage else "done"

    def _path(self, seed: int, preset: str) -> Path:
        return self.folder / _name(seed, preset)

    def _placed(self, config: RunConfig, seed: int, preset: str) -> RunConfig:
        return replace(config, output_dir=str(self._path(seed, preset)))


def run_ablation(
    options: AblationOptions, recipe: str | None, overrides: Sequence[str], *, dry_run: bool = False
) -> int:
    """Run an ablation, print its table, write it as JSON, Markdown and a figure; returns the exit status."""
    # A scheduler's SIGTERM ends the runs as Ctrl-C does; else they would go on without their parent.
    signal.signal(signal.SIGTERM, _interrupt)
    runs = AblationRuns(options, recipe, overrides, lambda line: print(line, flush=True))
    if dry_run:
        print(_plan(runs))
        return 0
    failed = runs.run()
    table = runs.table()
    if table.rows:
        command = f"python -m mstar_engine.run {' '.join(_command(options, recipe, overrides))}"
        record = {"ablation": options.name, "command": command, **runs.circumstances(), **dataclasses.asdict(table)}
        stamp = f"Device: {record['device']}. Date: {record['date']}. Command: `{command}`"
        figure = interval_plot(
            table.figure_rows(),
            label=f"{table.title}; difference in points",
            standalone=True,
            width=860,
            reference="the paper's difference",
        )
        texts = {
            "json": json.dumps(record, indent=1) + "\n",
            "md": f"{table.markdown()}\n{stamp}\n",
            "svg": figure,
        }
        stem = f"{record['date']}_{'cuda' if torch.cuda.is_available() else 'cpu'}_{options.name}"
        print(f"\n{table.markdown()}\n{stamp}")
        places = [runs.folder / options.name] + ([Path(options.results) / stem] if options.results else [])
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            for suffix, text in texts.items():
                replace_text(Path(f"{place}.{suffix}"), text)
        print(f"written: {', '.join(f'{place}.json .md .svg' for place in places)}")
    for name, reason in failed.items():
        print(f"mstar_engine: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def fork_run(source: Path, target: Path, config: RunConfig) -> None:
    """Make `target` a run of `config` that begins where the finished run `source` ended, in one step.

    Large files are immutable (each is replaced as a whole when it changes) and are shared by hard links. Trackers know
    `target` as a run of its own.
    """
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(".lock", "*.jsonl", "trackers"), copy_function=_link)
    shutil.copy2(source / "journal.jsonl", part / "journal.jsonl")
    replace_text(part / "config.yaml", dump_config(config))
    part.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _share_machine(jobs: int, overrides: Sequence[str]) -> tuple[int, int]:
    """(runs at a time, threads of each). Several one-thread runs get more done on a processor than one of many."""
    given = [load_config(None, [one]).threads for one in overrides if one.startswith("threads=")]
    given = [threads for threads in given if threads]  # 0 leaves it to us, as in a run
    if torch.cuda.is_available():
        return jobs or 1, given[-1] if given else 0
    cores = len(os.sched_getaffinity(0))
    threads = given[-1] if given else (max(1, cores // jobs) if jobs else 1)
    return jobs or max(1, cores // max(1, threads)), threads


def _refuse_overridden(ablation: Ablation, overrides: Sequence[str]) -> None:
    """A key in which the rows differ cannot be fixed for all of them."""
    settings = [PRESETS[preset].overrides for _, preset in ablation.rows]
    differing = {key for one in settings for key in one if len({repr(other.get(key)) for other in settings}) > 1}
    for one in overrides:
        key = one.partition("=")[0].strip()
        if key in ("preset", "seed") or any(fixed == key or fixed.startswith(f"{key}.") for fixed in differing):
            raise ConfigError(f"{key}: the rows of an ablation set it; allowed: keys that they share")


def _refuse_missing_stages(config: RunConfig) -> None:
    missing = [stage for stage in ("warmup", "evolve", "evaluate") if stage not in config.stages]
    if missing:
        raise ConfigError(f"stages: an ablation shares a warm-up and compares evaluations; add {', '.join(missing)}")


def _refuse_another(config: RunConfig, sections: Sequence[str] | None) -> None:
    """An arm that lies there was made by this configuration, or the table would mix two."""
    path = Path(config.output_dir) / "config.yaml"
    if not path.exists():
        return
    there = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    differing = differences(there if isinstance(there, dict) else {}, dataclasses.asdict(config), sections)
    if differing:
        raise ConfigError(f"{path.parent} was made by another configuration: {differing}; give another output_dir")


def _name(seed: int, preset: str) -> str:
    return f"seed{seed}/{preset}"


def _command(options: AblationOptions, recipe: str | None, overrides: Sequence[str]) -> list[str]:
    words = [*([recipe] if recipe else []), f"ablation={options.name}", f"seeds={options.seeds}"]
    words += [f"jobs={options.jobs}"] if options.jobs else []
    words += [f"results={options.results}"] if options.results else []
    return [shlex.quote(word) for word in [*words, *overrides]]


def _plan(runs: AblationRuns) -> str:
    """What an ablation would do, in words."""
    base = flat_config(dataclasses.asdict(runs.configs[0, runs.ablation.reference]))
    lines = [f"{runs.ablation.title}: {len(runs.presets)} presets x {runs.options.seeds} seeds, {runs.jobs} at a time"]
    for row, preset in runs.ablation.rows:
        config = runs.configs[0, preset]
        other = flat_config(dataclasses.asdict(config))
        changed = [f"{k}={v}" for k, v in other.items() if v != base[k] and k not in ("output_dir", "preset")]
        state = "done" if all(runs._done(seed, preset) for seed in range(runs.options.seeds)) else "to do"
        lines.append(f"  {row:<30} preset={preset:<16} {state:<6} {' '.join(changed) or '(the reference)'}")
    return "\n".join(lines)


def _interrupt(*_: object) -> None:
    """Not by way of SIGINT, which a shell's background job ignores."""
    raise KeyboardInterrupt
