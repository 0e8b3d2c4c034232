"""What must hold of a run's problem sets, checked before any work: each refusal is one line.

What a policy is measured on must not be what it learned from, and a method's reference answers must be there. Questions
are compared first and images only where questions meet, so that a large training set costs seconds, not its reading.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from mstar_engine.config import RunConfig
from mstar_engine.data.sources import DataSet
from mstar_engine.types import Problem

SHOWN = 3
_NAMES = {
    "warmup": "warm-up",
    "train": "training",
    "unlabelled": "unlabelled",
    "validation": "validation",
    "test": "test",
    "ood": "out-of-distribution",
}
_MEASURED = ("validation", "test", "ood")
_LEARNED = ("train", "unlabelled", "warmup")


def check_data(data: DataSet, config: RunConfig) -> None:
    """Refuse problem sets that share what they must not, or lack answers that the stages of `config` need. ValueError.

    The warm-up's ids may repeat: a problem can be demonstrated in several ways.
    """
    if "evaluate" in config.stages and not (data.test or data.ood or config.evaluate.benchmarks):
        raise ValueError(
            "evaluate.benchmarks={}: nothing to evaluate; allowed with data.test or data.ood, or without the stage "
            "evaluate"
        )
    sampled = config.warmup.source == "sampled"
    if "warmup" in config.stages and not sampled and not data.warmup:
        raise ValueError(
            "data.warmup='': no demonstrations; allowed with warmup.source=sampled, or without the stage warmup"
        )
    if "warmup" in config.stages and sampled and not any(problem.gold for problem in data.train):
        raise ValueError("warmup.source=sampled: no training problem has a reference answer; allowed: demonstrations")
    for name in ("train", "unlabelled", *_MEASURED):
        refuse_repeated_ids(getattr(data, name), f"{_NAMES[name]} set")
    refuse_repeated_ids([*data.train, *data.unlabelled], "training and unlabelled sets together")
    measured = {name: getattr(data, name) for name in _MEASURED}
    for name in _LEARNED:
        refuse_overlap(measured, getattr(data, name), _NAMES[name])
    for name in needed_golds(config):
        problems = getattr(data, name)
        if name == "train" and "evolve" not in config.stages:
            problems = problems[: config.annotate.problems]
        refuse_missing_golds(problems, f"{_NAMES[name]} set")


def learns(config: RunConfig) -> bool:
    """Whether a run has a stage that needs training problems."""
    return not {"warmup", "annotate", "prm", "evolve"}.isdisjoint(config.stages)


def check_benchmarks(benchmarks: Mapping[str, Sequence[Problem]], data: DataSet) -> None:
    """Refuse benchmarks that share problems with what `data` has to learn from. ValueError names the benchmark."""
    for name in _LEARNED:
        refuse_overlap(benchmarks, getattr(data, name), _NAMES[name])


def needed_golds(config: RunConfig) -> list[str]:
    """The problem sets whose reference answers the stages of a run judge by."""
    stages, needed = set(config.stages), []
    if stages & {"annotate", "evolve"}:
        needed.append("train")
    if "evolve" in stages and config.prompts.unlabelled == "oracle":
        needed.append("unlabelled")
    if stages & {"warmup", "annotate", "evolve"}:
        needed.append("validation")
    if stages & {"warmup", "evaluate"}:
        needed += ["test", "ood"]
    return needed


def refuse_missing_golds(problems: Iterable[Problem], what: str) -> None:
    """ValueError with the count and the first ids of problems without a reference answer."""
    missing = [problem.id for problem in problems if not (problem.gold or "").strip()]
    if missing:
        raise ValueError(f"{what}: {len(missing)} without a reference answer: {_first(missing)}")


def refuse_repeated_ids(problems: Iterable[Problem], what: str) -> None:
    """ValueError with the count and the first of the ids that several problems have: ids key files and draws."""
    repeated = [name for name, times in Counter(problem.id for problem in problems).items() if times > 1]
    if repeated:
        raise ValueError(f"{what}: repeated ids, {len(repeated)} in all: {_first(repeated)}")


def refuse_overlap(measured: Mapping[str, Sequence[Problem]], learned: Sequence[Problem], what: str) -> None:
    """ValueError when a set that is measured on (a benchmark, or one of DataSet by its name) shares problems with a set
    learned from."""
    for name, pairs in overlaps(measured, learned).items():
        if pairs:
            shown = [ours if ours == theirs else f"{ours} (there {theirs})" for ours, theirs in pairs.items()]
            count = f"{len(pairs)} of {len(measured[name])}"
            raise ValueError(
                f"{_NAMES.get(name, name)} set: {count} problems are also in the {what} set: {_first(shown)}"
            )


def overlaps(measured: Mapping[str, Sequence[Problem]], learned: Sequence[Problem]) -> dict[str, dict[str, str]]:
    """By set, the problems that are among `learned` too: their ids, and the ids that they have there.

    The same problem has the same id, or the same question (white space and case aside) with the same images: the same
    bytes of a file, the same RGB pixels of an image in memory. ValueError names a problem whose image cannot be read.
    """
    names = {problem.id for problem in learned}
    found = {name: {p.id: p.id for p in problems if p.id in names} for name, problems in measured.items()}
    asked: dict[str, list[tuple[str, Problem]]] = defaultdict(list)
    for name, problems in measured.items():
        for problem in problems:
            asked[_question(problem)].append((name, problem))
    meeting: dict[str, list[Problem]] = defaultdict(list)
    for problem in learned:
        question = _question(problem)
        if question in asked:
            meeting[question].append(problem)
    for question, theirs in meeting.items():
        same = _same_images([problem for _, problem in asked[question]], theirs)
        for name, problem in asked[question]:
            if id(problem) in same:
                found[name].setdefault(problem.id, same[id(problem)])
    return found


def _question(problem: Problem) -> str:
    return " ".join(problem.question.split()).casefold()


def _same_images(ours: Sequence[Problem], theirs: Sequence[Problem]) -> dict[int, str]:
    """Which of `ours`, by identity, have the images of one of `theirs`, and its id."""
    # Bytes tell more cheaply than pixels, but a file and an image in memory have only pixels to compare.
    pixels = any(isinstance(image, Image.Image) for problem in (*ours, *theirs) for image in problem.images)
    sizes = {_sizes(problem, pixels) for problem in ours}
    alike = [problem for problem in theirs if _sizes(problem, pixels) in sizes]
    if not alike:
        return {}
    prints: dict[tuple, str] = {}
    for problem in alike:
        prints.setdefault(_prints(problem, pixels), problem.id)
    known = {_sizes(problem, pixels) for problem in alike}
    candidates = [(problem, _prints(problem, pixels)) for problem in ours if _sizes(problem, pixels) in known]
    return {id(problem): prints[found] for problem, found in candidates if found in prints}


def _sizes(problem: Problem, pixels: bool) -> tuple:
    """What differs between most different images and costs least: sizes, in pixels or in bytes."""
    return tuple(_size(problem, image, pixels) for image in problem.images)


def _size(problem: Problem, image: Image.Image | Path | str, pixels: bool) -> object:
    if isinstance(image, Image.Image):
        return image.size
    try:
        if not pixels:
            return Path(image).stat().st_size
        with Image.open(image) as opened:
            return opened.size
    except (OSError, ValueError) as error:
        raise _unreadable(problem, image, error) from None


def _prints(problem: Problem, pixels: bool) -> tuple:
    """The images by content."""
    return tuple(_print(problem, image, pixels) for image in problem.images)


def _print(problem: Problem, image: Image.Image | Path | str, pixels: bool) -> bytes:
    try:
        if isinstance(image, Image.Image):
            data = image.convert("RGB").tobytes()
        elif pixels:
            with Image.open(image) as opened:
                data = opened.convert("RGB").tobytes()
        else:
            data = Path(image).read_bytes()
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(problem, image, error) from None
    return hashlib.sha256(data).digest()


def _unreadable(problem: Problem, image: object, error: Exception) -> ValueError:
    return ValueError(f"problem {problem.id!r}: cannot read image {image!s}: {error}")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
