"""Every row of the paper's tables by name, and the tables: an ablation is a list of presets (paper sections 3 to 6).

A preset says what its row is about (method, interval, selection, temperature, prompts) and nothing else: the task, the
model and the budget (`evolve.passes`) stay those of the recipe. Each names every key that distinguishes rows, so that
one preset laid over another leaves nothing of it. Figures are the paper's, MiniCPM-V-2.5 8B: MathV360K (held-out
problems of the training distribution) and MathVista (another one), accuracy in percent.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mstar_engine.yaml_text import ConfigError

Overrides = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """`overrides` by dotted key; `paper` (MathV360K, MathVista) where the paper has the row; `about` one line."""

    about: str
    overrides: Overrides
    paper: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """A table: (row, preset) pairs, and the preset that each row is compared with."""

    title: str
    rows: tuple[tuple[str, str], ...]
    reference: str


# Rows of the methods' table: binary reward, every distinct correct response, temperature 1.0, labelled prompts.
_BASE: Overrides = {
    "evolve.method": "continuous",
    "evolve.interval": 0.25,
    "rollout.n": 16,
    "rollout.temperature": 1.0,
    "select.kind": "all",
    "select.k": 2,
    "select.alpha": None,
    "temperature.controller": "fixed",
    "temperature.metric": "reward_pass_at_k",
    "temperature.k": 2,
    "prompts.unlabelled": "none",
    "prompts.mix_in_from": 0.0,
}
_TOP_2: Overrides = {**_BASE, "select.kind": "top_k"}


def _with(base: Overrides, **changed: Any) -> Overrides:
    """`base` with keys changed; `__` stands for the dot."""
    return {**base, **{key.replace("__", "."): value for key, value in changed.items()}}


def _method(method: str, interval: float, paper: tuple[float, float] | None, about: str, **more: Any) -> Preset:
    changed = _with(_BASE, evolve__method=method, evolve__interval=interval, **more)
    return Preset(about=about, overrides=changed, paper=paper)


def _selection(paper: tuple[float, float], about: str, **select: Any) -> Preset:
    changed = {f"select__{key}": value for key, value in select.items()}
    return Preset(about=about, overrides=_with(_BASE, **changed), paper=paper)


def _unlabelled(
    base: Overrides, source: str, mix_in_from: float, paper: tuple[float, float] | None, about: str
) -> Preset:
    changed = _with(base, prompts__unlabelled=source, prompts__mix_in_from=mix_in_from)
    return Preset(about=about, overrides=changed, paper=paper)


def _temperature(controller: str, metric: str, paper: tuple[float, float] | None, about: str, k: int = 2) -> Preset:
    changed = _with(_TOP_2, temperature__controller=controller, temperature__metric=metric, temperature__k=k)
    return Preset(about=about, overrides=changed, paper=paper)


PRESETS: dict[str, Preset] = {
    "mstar": _temperature(
        "racing", "reward_pass_at_k", None, "continuous 25%, Top-2, temperature by a race on Reward-Pass@2"
    ),
    # Training methods (section 3).
    "sft": _method("sft", 1.0, (44.3, 54.8), "supervised training on the reference answers, nothing sampled"),
    "star": _method(
        "star",
        1.0,
        None,
        "one greedy response a problem, always from the warmed-up policy",
        rollout__n=1,
        rollout__temperature=0.0,
    ),
    "iterative_rft": _method("iterative_rft", 1.0, (42.3, 55.7), "from the last checkpoint, optimizer reset"),
    "rest_em": _method("rest_em", 1.0, (42.3, 55.1), "from the warmed-up policy, optimizer reset"),
    "continuous_100": _method("continuous", 1.0, (42.2, 56.7), "optimizer inherited, the whole set an iteration"),
    "continuous_50": _method("continuous", 0.5, (43.1, 56.2), "optimizer inherited, half the set an iteration"),
    "continuous_25": _method("continuous", 0.25, (43.1, 57.2), "optimizer inherited, a quarter an iteration"),
    "continuous_12.5": _method("continuous", 0.125, (42.3, 56.1), "optimizer inherited, an eighth an iteration"),
    "continuous_6.25": _method("continuous", 0.0625, (41.0, 56.8), "optimizer inherited, a sixteenth an iteration"),
    # Selection (section 4).
    "random_2": _selection((41.0, 55.5), "two correct responses at random", kind="random", k=2),
    "threshold": _selection((43.8, 57.5), "correct responses that score above 0.5", kind="threshold", alpha=0.5),
    "top_1": _selection((43.0, 59.0), "the best-scored correct response", kind="top_k", k=1),
    "top_2": _selection((45.3, 59.2), "the two best-scored correct responses", kind="top_k", k=2),
    "top_4": _selection((44.0, 58.4), "the four best-scored correct responses", kind="top_k", k=4),
    # Prompts (section 5).
    "oracle_all": _unlabelled(_BASE, "oracle", 0.0, (42.5, 58.2), "true answers on the unlabelled half, all correct"),
    "oracle_top_2": _unlabelled(_TOP_2, "oracle", 0.0, (42.9, 59.1), "true answers on the unlabelled half, Top-2"),
    "pseudo_0": _unlabelled(_TOP_2, "pseudo", 0.0, (43.3, 58.2), "pseudo-labels from the start"),
    "pseudo_25": _unlabelled(_TOP_2, "pseudo", 0.25, (42.4, 57.6), "pseudo-labels after 25% of training"),
    "pseudo_50": _unlabelled(_TOP_2, "pseudo", 0.5, (42.9, 58.2), "pseudo-labels after 50% of training"),
    "pseudo_75": _unlabelled(_TOP_2, "pseudo", 0.75, (45.0, 58.8), "pseudo-labels after 75% of training"),
    # Temperature (section 6).
    "grid": _temperature("grid", "reward_pass_at_k", (45.9, 59.5), "the paper's M-STaR: argmax over 14 temperatures"),
    "grid_pass": _temperature("grid", "pass_at_k", (42.8, 58.0), "the grid, by Pass@K of all its samples", k=0),
    "grid_balance": _temperature("grid", "balance", None, "the grid, by B-STaR's balance score"),
    "smooth": _temperature("continuous", "reward_pass_at_k", None, "a smooth model over temperature and time"),
}

ABLATIONS: dict[str, Ablation] = {
    "paper_methods": Ablation(
        title="Training methods (paper section 3): all correct kept, temperature 1.0",
        rows=(
            ("SFT", "sft"),
            ("Iterative RFT", "iterative_rft"),
            ("ReST-EM", "rest_em"),
            ("Continuous 100%", "continuous_100"),
            ("Continuous 50%", "continuous_50"),
            ("Continuous 25%", "continuous_25"),
            ("Continuous 12.5%", "continuous_12.5"),
            ("Continuous 6.25%", "continuous_6.25"),
        ),
        reference="continuous_25",
    ),
    "paper_selection": Ablation(
        title="Selection (paper section 4): continuous 25%, temperature 1.0",
        rows=(
            ("all correct", "continuous_25"),
            ("random 2", "random_2"),
            ("score > alpha", "threshold"),
            ("Top-1", "top_1"),
            ("Top-2", "top_2"),
            ("Top-4", "top_4"),
        ),
        reference="continuous_25",
    ),
    "paper_prompts": Ablation(
        title="Prompts (paper section 5): continuous 25%, temperature 1.0",
        rows=(
            ("labelled, no PRM", "continuous_25"),
            ("labelled, Top-2", "top_2"),
            ("oracle, no PRM", "oracle_all"),
            ("oracle, Top-2", "oracle_top_2"),
            ("pseudo from 0%", "pseudo_0"),
            ("pseudo from 25%", "pseudo_25"),
            ("pseudo from 50%", "pseudo_50"),
            ("pseudo from 75%", "pseudo_75"),
        ),
        reference="top_2",
    ),
    "paper_temperature": Ablation(
        title="Temperature (paper section 6): continuous 25%, Top-2",
        rows=(
            ("fixed 1.0", "top_2"),
            ("grid, Pass@K", "grid_pass"),
            ("grid, Reward-Pass@2 (M-STaR)", "grid"),
            ("grid, balance score", "grid_balance"),
            ("racing, Reward-Pass@2", "mstar"),
            ("smooth model, Reward-Pass@2", "smooth"),
        ),
        reference="top_2",
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of this name. ConfigError lists all, the nearest first."""
    if name not in PRESETS:
        raise ConfigError(f"preset={name}: no such preset; {_nearest(name, PRESETS)}")
    return PRESETS[name]


def ablation_named(name: str) -> Ablation:
    """The ablation of this name. ConfigError lists all, the nearest first."""
    if name not in ABLATIONS:
        raise ConfigError(f"ablation={name}: no such ablation; {_nearest(name, ABLATIONS)}")
    return ABLATIONS[name]


def preset_mapping(name: str) -> dict[str, Any]:
    """The preset as a nested mapping, as a recipe would write it, its own name included."""
    mapping: dict[str, Any] = {"preset": name}
    for dotted, value in preset_named(name).overrides.items():
        *sections, key = dotted.split(".")
        here = mapping
        for section in sections:
            here = here.setdefault(section, {})
        here[key] = value
    return mapping


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    return f"did you mean {' or '.join(near)}? All: {', '.join(known)}"
