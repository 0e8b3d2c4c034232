"""The table of an ablation, beside the paper's: means over seeds with 95% intervals, paired tests, plain verdicts.

Arms of one seed start from the same warmed-up policy and are measured on the same problems, so a row is compared with
the reference row by the differences within seeds (paired t test). A verdict says whether the sign of a difference is
the paper's; where our interval holds zero it says that the question is open.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student

from mstar_engine.presets import Ablation, Preset
from mstar_engine.report.intervals import IntervalRow

KEYS = {"greedy": ("test", "MathV360K"), "ood_greedy": ("out of distribution", "MathVista")}
"""What is compared: (our problem set, the paper's), within and out of the training distribution."""
PAPER_WARMUP = (38.8, 52.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A finished run: its preset, seed and summary.json."""

    preset: str
    seed: int
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """The mean of values a seed, in percent, with its 95% t interval; without limits for a single seed."""

    value: float
    low: float | None
    high: float | None
    seeds: int

    def text(self, signed: bool = False) -> str:
        """As "60.6 (49.9 to 71.3)"."""
        sign = "+" if signed else ""
        interval = "" if self.low is None else f" ({self.low:{sign}.1f} to {self.high:{sign}.1f})"
        return f"{self.value:{sign}.1f}{interval}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A row minus the reference: `ours` (paired over seeds) with the p value of the paired t test, `paper`'s, and the
    `verdict`: agrees, disagrees, open, or "" where the paper has no figure."""

    ours: Mean
    p: float | None
    paper: float | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """One row. `by_seed` holds percentages by key of KEYS, one a seed in the order of `seeds`; `gap` is None for the
    reference itself. `sampled` responses and `kept` ones a seed on average, sweeps in `swept`."""

    row: str
    preset: str
    paper: tuple[float, float] | None
    seeds: tuple[int, ...]
    by_seed: dict[str, list[float]]
    mean: dict[str, Mean]
    gap: dict[str, Gap] | None
    sampled: float
    swept: float
    kept: float
    pseudo_label_accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationTable:
    """All rows of an ablation; `warmup` is where the arms start, by key of KEYS."""

    title: str
    reference: str
    warmup: dict[str, Mean]
    rows: tuple[AblationRow, ...]

    def markdown(self) -> str:
        """The table as Markdown, one part a measure of KEYS, with what it takes to read it."""
        reference = next((row.row for row in self.rows if row.preset == self.reference), self.reference)
        lines = [f"**{self.title}**", ""]
        for index, (key, (title, theirs)) in enumerate(KEYS.items()):
            head = [
                "",
                f"paper, {theirs}",
                f"minus {reference}",
                f"here, {title}",
                f"minus {reference}",
                "p",
                "verdict",
            ]
            table = [head, ["after the warm-up", f"{PAPER_WARMUP[index]:.1f}", "", self.warmup[key].text(), "", "", ""]]
            for row in self.rows:
                gap = row.gap[key] if row.gap else None
                paper = f"{row.paper[index]:.1f}" if row.paper else "-"
                there = f"{gap.paper:+.1f}" if gap and gap.paper is not None else ""
                table.append([row.row, paper, there, row.mean[key].text(), *_gap_cells(gap)])
            lines += [*_aligned(table), ""]
        head = ["", "sampled", "of these in sweeps", "kept"]
        pseudo = any(row.pseudo_label_accuracy is not None for row in self.rows)
        table = [head + (["pseudo-labels right"] if pseudo else [])]
        for row in self.rows:
            counts = [f"{row.sampled + row.swept:,.0f}", f"{row.swept:,.0f}", f"{row.kept:,.0f}"]
            right = row.pseudo_label_accuracy
            table.append([row.row, *counts, *([] if not pseudo else ["" if right is None else f"{right:.1f}%"])])
        lines += [*_aligned(table), ""]
        seeds = max((len(row.seeds) for row in self.rows), default=0)
        tests = sum(row.gap is not None for row in self.rows)
        lines += [
            f"Greedy accuracy in percent. Here: the mean of {seeds} seed{'' if seeds == 1 else 's'} with its 95% t "
            f"interval; differences are paired within seeds; p is the paired t test's, not adjusted for the {tests} "
            "comparisons of a column. The paper: MiniCPM-V-2.5 8B, one run a row; its standard error on MathVista is "
            "about 1.5 points. The verdict is about the sign of the difference: open where our interval holds 0. "
            "Responses are means a seed.",
            "",
        ]
        lines += [f"Disagrees with the paper: {text}." for text in self.disagreements()]
        return "\n".join(lines).rstrip() + "\n"

    def disagreements(self) -> list[str]:
        """Each difference whose sign is not the paper's, in words."""
        return [
            f"{row.row}, {title}: {row.gap[key].ours.text(signed=True)} here, {row.gap[key].paper:+.1f} there"
            for row in self.rows
            for key, (title, _) in KEYS.items()
            if row.gap and row.gap[key].verdict == "disagrees"
        ]

    def figure_rows(self) -> list[IntervalRow]:
        """Each row minus the reference, in shares, paired over seeds, with the paper's difference to compare with.

        Not the means themselves: seeds differ by more than rows do.
        """
        rows = []
        for key, (here, paper) in KEYS.items():
            group = f"{here} (the paper: {paper})"
            for row in self.rows:
                if not row.gap:
                    rows.append(IntervalRow(f"{row.row}: reference", (0.0, 0.0, 0.0), group))
                    continue
                gap = row.gap[key]
                value, low, high = gap.ours.value / 100, gap.ours.low, gap.ours.high
                bounds = (value, value if low is None else low / 100, value if high is None else high / 100)
                theirs = None if gap.paper is None else gap.paper / 100
                rows.append(IntervalRow(row.row, bounds, group, reference=theirs))
        return rows


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and 95% t interval of values a seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Mean(value=mean, low=None, high=None, seeds=len(values))
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(value=mean, low=mean - half, high=mean + half, seeds=len(values))


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p value of the paired t test; None for fewer than two pairs. Equal pairs everywhere give 1."""
    if len(differences) < 2:
        return None
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * student.sf(abs(mean) / (spread / math.sqrt(len(differences))), len(differences) - 1))


def verdict(ours: Mean, paper: float | None) -> str:
    """Whether the sign of a difference is the paper's."""
    if paper is None:
        return ""
    if ours.low is None or ours.low <= 0 <= ours.high:
        return "open"
    return "agrees" if (ours.value > 0) == (paper > 0) and paper != 0 else "disagrees"


def build_table(ablation: Ablation, presets: Mapping[str, Preset], arms: Sequence[Arm]) -> AblationTable:
    """The table of the arms that are there; a row without any is left out. Rows are compared over common seeds."""
    found = {preset: {arm.seed: arm.summary for arm in arms if arm.preset == preset} for _, preset in ablation.rows}
    base = found.get(ablation.reference, {})
    base_paper = presets[ablation.reference].paper
    rows = []
    for row, preset in ablation.rows:
        summaries = found[preset]
        if not summaries:
            continue
        seeds, paper = tuple(sorted(summaries)), presets[preset].paper
        by_seed = {key: [_percent(summaries[seed], "final", key) for seed in seeds] for key in KEYS}
        gap = None
        if preset != ablation.reference and base:
            gap = {}
            for index, key in enumerate(KEYS):
                common = [seed for seed in seeds if seed in base]
                gaps = [_percent(summaries[s], "final", key) - _percent(base[s], "final", key) for s in common]
                there = paper[index] - base_paper[index] if paper and base_paper else None
                if gaps:
                    ours = mean_of(gaps)
                    gap[key] = Gap(ours=ours, p=paired_p(gaps), paper=there, verdict=verdict(ours, there))
            gap = gap or None
        entries = [summaries[seed]["evolve"] for seed in seeds]
        rows.append(
            AblationRow(
                row=row,
                preset=preset,
                paper=paper,
                seeds=seeds,
                by_seed=by_seed,
                mean={key: mean_of(values) for key, values in by_seed.items()},
                gap=gap,
                sampled=statistics.fmean(sum(e["sampled"] for e in one) for one in entries),
                swept=statistics.fmean(sum((e.get("sweep") or {}).get("drawn", 0) for e in one) for one in entries),
                kept=statistics.fmean(sum(e["kept"] for e in one) for one in entries),
                pseudo_label_accuracy=_pseudo(entries),
            )
        )
    starts = {arm.seed: arm.summary for arm in arms}
    warmup = {key: mean_of([_percent(one, "warmup", key) for one in starts.values()]) for key in KEYS} if starts else {}
    return AblationTable(title=ablation.title, reference=ablation.reference, warmup=warmup, rows=tuple(rows))


def _pseudo(entries: Sequence[Sequence[Mapping[str, Any]]]) -> float | None:
    """Percent of the pseudo-labels of all seeds and iterations that were right."""
    known = [e["pseudo"]["accuracy"] for one in entries for e in one if (e.get("pseudo") or {}).get("accuracy")]
    items = sum(one["items"] for one in known)
    return 100 * sum(one["value"] * one["items"] for one in known) / items if items else None


def _percent(summary: Mapping[str, Any], stage: str, key: str) -> float:
    return 100 * summary[stage][key]["value"]


def _gap_cells(gap: Gap | None) -> list[str]:
    if gap is None:
        return ["", "", ""]
    p = "" if gap.p is None else "<0.001" if gap.p < 0.001 else f"{gap.p:.3f}"
    return [gap.ours.text(signed=True), p, gap.verdict]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows (the first is the head) as Markdown whose columns also line up as plain text."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in table]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
