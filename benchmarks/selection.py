"""What selection is worth on the default task: Top-2 by process reward, random-2 and all correct, seed by seed.

For each seed one run is brought to its process reward model (pretrain, warmup, annotate, prm); then every selection
evolves a copy of it, so that the arms share the warmed-up policy, its optimizer and the step scorer. Arms are compared
on the 512 test problems, greedy, by the mean over seeds with a 95% t interval, and by the paired difference to Top-2.
The pictures then tell how many of the kept responses reason cleanly (benchmarks/digits_truth.py). Resumable: what lies
in --runs is not done again.

    python -m benchmarks.selection [--seeds 5] [--jobs 2] [--runs runs/selection] [--json FILE] [key=value ...]
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.digits_truth import audit
from mstar_engine.config_parse import dump_config, load_config
from mstar_engine.durable import replace_text
from mstar_engine.environment import device_name, versions

BUDGET = (
    "data.train_problems=4096", "evolve.interval=512", "evolve.iterations=6", "train.learning_rate=2e-4",
    "temperature.controller=fixed",
)  # fmt: skip
"""Of the rows in benchmarks/results/2026-11-25_cpu_selection.json."""
ARMS = {"top_2": ("top_k", 2), "random_2": ("random", 2), "all_correct": ("all", 2)}
SHARED = "stages=[pretrain,warmup,annotate,prm]"


def run(directory: Path, seed: int, overrides: Sequence[str], threads: int, *more: str) -> None:
    """One sitting of a run, its output in `<directory>.log`. Raises with the last lines when it fails."""
    arguments = [f"output_dir={directory}", f"seed={seed}", f"threads={threads}", *overrides, *more, "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    log = directory.with_name(directory.name + ".log")
    with open(log, "a") as output:
        command = [sys.executable, "-m", "mstar_engine.run", *arguments]
        if subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode:
            raise RuntimeError(f"{directory}: failed; the end of {log}:\n" + log.read_text()[-500:])


def seed_runs(runs: Path, seed: int, overrides: Sequence[str], threads: int) -> dict[str, dict[str, Any]]:
    """The summaries of all arms of one seed."""
    shared = runs / f"seed{seed}"
    run(shared, seed, [*BUDGET, *overrides], threads, SHARED)
    found = {}
    for arm, (kind, k) in ARMS.items():
        directory = runs / f"seed{seed}_{arm}"
        chosen = [*BUDGET, *overrides, f"select.kind={kind}", f"select.k={k}"]
        if not directory.exists():
            part = directory.with_name(directory.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(shared, part, ignore=shutil.ignore_patterns(".lock"))
            config = load_config(None, [f"seed={seed}", *chosen])
            replace_text(part / "config.yaml", dump_config(replace(config, output_dir=str(directory))))
            part.rename(directory)
        run(directory, seed, chosen, threads)
        found[arm] = json.loads((directory / "summary.json").read_text())
        print(f"seed {seed}, {arm}: test {100 * found[arm]['final']['greedy']['value']:.1f}%", flush=True)
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95% t interval of the mean."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def rows(summaries: dict[int, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row an arm: accuracies by seed, mean with interval, paired difference of Top-2 to it."""
    table = []
    for arm in ARMS:
        row: dict[str, Any] = {"selection": arm}
        for key in ("greedy", "ood_greedy"):
            values = [100 * one[arm]["final"][key]["value"] for one in summaries.values()]
            gaps = [100 * one["top_2"]["final"][key]["value"] - v for one, v in zip(summaries.values(), values)]
            row[key] = {"by_seed": values, "mean_low_high": interval(values), "top_2_minus_this": interval(gaps)}
        row["kept"] = [sum(entry["kept"] for entry in one[arm]["evolve"]) for one in summaries.values()]
        row["validation"] = [[100 * e["greedy"]["value"] for e in one[arm]["evolve"]] for one in summaries.values()]
        table.append(row)
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="seeds that run at the same time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--runs", type=Path, default=Path("runs/selection"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        seeds = range(options.seeds)
        done = pool.map(lambda seed: seed_runs(options.runs, seed, options.overrides, options.threads), seeds)
        summaries = dict(zip(seeds, done))
    table = rows(summaries)
    print(f"{'selection':<14} {'test':>24} {'Top-2 minus this':>24} {'out of distribution':>26}")
    for row in table:
        shown = [row["greedy"]["mean_low_high"], row["greedy"]["top_2_minus_this"], row["ood_greedy"]["mean_low_high"]]
        print(f"{row['selection']:<14} " + " ".join(f"{m:8.1f} ({a:5.1f} to {b:5.1f})" for m, a, b in shown))
    prm = {seed: one["top_2"]["prm"] for seed, one in summaries.items()}
    warmup = {seed: 100 * one["top_2"]["warmup"]["greedy"]["value"] for seed, one in summaries.items()}
    print("after the warm-up:", ", ".join(f"{value:.1f}" for value in warmup.values()))
    print("step AUC, held out:", ", ".join(f"{one['held_out']['auc']:.3f}" for one in prm.values()))
    audits = {
        seed: {arm: audit(sorted((options.runs / f"seed{seed}_{arm}/rollouts").glob("iteration_*.parquet")), seed)
               for arm in ARMS}
        for seed in summaries
    }  # fmt: skip
    for arm in ARMS:
        ends = [(one[arm][0], one[arm][-1]) for one in audits.values()]
        shares = [f"{100 * first['clean_of_kept']:.0f} to {100 * last['clean_of_kept']:.0f}%" for first, last in ends]
        print(f"clean reasoning among the kept, first to last iteration, {arm}: {', '.join(shares)}")
    pairs = [[one["clean_above_unclean"] for one in found["top_2"]] for found in audits.values()]
    print("clean scores above unclean, of one problem:", ", ".join(f"{a[0]:.2f} to {a[-1]:.2f}" for a in pairs))
    if options.json is not None:
        record = {
            "audit": audits, "rows": table, "warmup": warmup,
            "prm": prm, "device": device_name(), "versions": versions(),
            "date": datetime.date.today().isoformat(),
            "command": "python -m benchmarks.selection " + " ".join(sys.argv[1:]),
        }  # fmt: skip
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
