"""The table of families in docs/models.md: what can be told without running a model, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import transformers
from family import CASES, FAMILIES, AbsentError
from refused import REFUSED, reason
from refused_models import REFUSED_MODELS, model_reason

from mstar_engine.models.loading import class_of

PATH = Path(__file__).parents[3] / "docs" / "models.md"
COLUMNS = {"none": "no image", "one": "one image", "two": "two images", "resized": "another size"}
INTRODUCTION = """# Models

Any checkpoint directory that `AutoModelForImageTextToText` and `AutoProcessor` load can be sampled from and trained, if
what its language model keeps from token to token is keys and values. No family is known to the engine by name. It looks
at the config, watches the positions that the language model is run with, and compares its logits with those of
`model.generate` for the first prompt with each kind of input, before anything is sampled: a family whose logits differ
is refused. Prompts with images share a forward only where that computes what each does alone.

This page is written by `python tests/models/matrix/write_matrix.py`, which runs a tiny random-weight model of each
family in fp32. A cell names the numbers of responses a problem (n) for which every row's greedy tokens are those of
`model.generate`, and their log-probabilities within 5e-4 of its. Each is also run as on a GPU: in steps of fixed shape,
and with prompts in one row where the family packs. Prompts are made by the family's own processor where it can be built
without torchvision, else by hand, of the tensors that it makes.

"""
REFUSALS = """
## Refused

What these keep from token to token is more than keys and values, or other than one set a layer, or they want a picture
with every token. They are refused with the reason before anything is sampled: by their config, or when the model is run
on two tokens. To generate with them, use `model.generate`.

"""


def families() -> dict[str, list[str]]:
    """By family that this transformers has: its class, who makes its prompts, and notes."""
    found = {}
    for name, make in FAMILIES.items():
        made = make()
        try:
            kind = class_of(made.config())
        except AbsentError:
            continue
        found[name] = [f"`{kind.__name__}`", "processor" if made.processor else "by hand", made.notes]
    return found


def refusals() -> dict[str, str]:
    """By refused family that this transformers has: the reason."""
    found = {}
    for name in (*REFUSED, *REFUSED_MODELS):
        try:
            found[name] = reason(name) if name in REFUSED else model_reason(name)
        except AbsentError:
            continue
    return found


def written(outcomes: Mapping[str, Mapping[tuple[str, str], str]]) -> str:
    """The page. `outcomes` by family as `matrix.outcome` gives them."""
    lines = [_row("family", "class", "prompts", *COLUMNS.values(), "notes"), "|---" * (4 + len(COLUMNS)) + "|"]
    for name, (kind, prompts, notes) in families().items():
        cells = []
        for case in COLUMNS:
            cases = ("one", "again") if case == "one" else (case,)
            runs = {run: not any(outcomes[name][place, run] for place in cases) for place, run in outcomes[name]}
            cells.append(", ".join(run for run, exact in runs.items() if exact and "GPU" not in run) or "no")
        lines.append(_row(name, kind, prompts, *cells, notes))
    refused = [_row("family", "reason"), "|---|---|", *(_row(name, what) for name, what in refusals().items())]
    version = f"Measured with transformers {transformers.__version__}.\n"
    return INTRODUCTION + "\n".join(lines) + "\n\n" + version + REFUSALS + "\n".join(refused) + "\n"


def rows(page: str) -> dict[str, list[str]]:
    """The cells of the page's tables by the first one."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    return {first: rest for first, *rest in cells if first != "family" and not first.startswith("---")}


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


assert set(COLUMNS) < set(CASES)
