"""A run's own problem sets, from the files and data sets that its configuration names.

    data.train=train.jsonl                     by data.format, data.fields and data.image_folder
    data.ood=mathvista:AI4Math/MathVista#testmini    a format of its own in front, a split behind

Validation and test problems that no file gives are held out of the training file, with all that say the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from mstar_engine.config import DataConfig
from mstar_engine.data.formats import FORMATS
from mstar_engine.data.image_files import ImageFiles
from mstar_engine.data.images import ImageLimits
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.data.reader import Source, UnusableGolds, read_problems
from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.types import Problem

SETS = ("train", "unlabelled", "warmup", "validation", "test", "ood")
HELD_OUT = ("validation", "test")


def read_sets(
    config: DataConfig,
    seed: int,
    listed: Path | None = None,
    *,
    train_needed: bool = True,
    counted: dict[str, Quarantine] | None = None,
    unusable: UnusableGolds | None = None,
) -> dict[str, list[Problem]]:
    """The problem sets by name. `listed`: the file that names the rows that were set aside; `counted` gets the counts
    of each set that has a file; `unusable`: see `read_problems`.

    Without a training file, where none is needed, there are the sets that have files of their own. ValueError for a set
    that cannot be read, is empty, or has more than `data.max_quarantined` of its rows set aside.
    """
    for name in config.categories:
        if not getattr(config, name):
            raise ValueError(f"data.categories: {name}; allowed: sets that have a file of their own (data.{name})")
    if not config.train and train_needed:
        raise ValueError("data.train=''; allowed with data.dataset_name=files: a file, folder or Hugging Face name")
    for name in filter(lambda name: getattr(config, name), SETS):
        source_of(config, name)  # refuses, before another set is read
    found: dict[str, list[Problem]] = {name: [] for name in SETS}
    everything = Quarantine()
    try:
        for name in SETS:
            if getattr(config, name):
                source, folder = source_of(config, name)
                quarantine = Quarantine()
                if counted is not None:
                    counted[name] = quarantine
                where = "" if listed is None else str(listed)
                found[name] = read_source(
                    config, f"data.{name}", source, folder, everything, where, quarantine=quarantine, unusable=unusable
                )
    finally:
        if listed is not None and (everything.listed or listed.exists()):
            everything.write(listed)
    sizes = {"validation": config.validation_problems, "test": config.test_problems, "ood": config.ood_problems}
    wanted = {name: sizes[name] for name in HELD_OUT if config.train and not getattr(config, name)}
    held = hold_out(found["train"], wanted, seed)
    found |= held
    for name in ("validation", "test", "ood"):
        if name not in held:
            found[name] = some(found[name], sizes[name], seed)
    if config.limit:
        found["train"] = some(found["train"], config.limit, seed)
    return found


def limits_of(config: DataConfig) -> ImageLimits:
    """The largest image files and images."""
    return ImageLimits(bytes=config.max_image_bytes, pixels=config.max_image_pixels)


def preprocessed(config: DataConfig) -> TensorCache | None:
    """Where preprocessed images and encoded prompts are kept; None for problems whose images are in memory."""
    if config.dataset_name != "files" or not config.image_cache_bytes:
        return None
    return _tensors(_cache(config) / "preprocessed", config.image_cache_bytes)


@cache
def _tensors(folder: Path, max_bytes: int) -> TensorCache:
    """One a process, so that what one part of a run has read is known to the others."""
    return TensorCache(folder, max_bytes)


def _cache(config: DataConfig) -> Path:
    return Path(config.cache_dir).expanduser()


def source_of(config: DataConfig, name: str) -> tuple[Source, Path]:
    """Where and how a set is read, and its image folder. ValueError names the key."""
    golds, text = name not in ("unlabelled", "warmup"), getattr(config, name)
    return source_named(
        config,
        f"data.{name}",
        text,
        golds=golds,
        responses=name == "warmup",
        categories=config.categories.get(name, ()),
    )


def source_named(
    config: DataConfig,
    key: str,
    text: str,
    *,
    golds: bool = True,
    responses: bool = False,
    categories: Sequence[str] = (),
) -> tuple[Source, Path]:
    """What the `text` of the configuration's `key` names, read by `config` where it does not say otherwise, and the
    image folder. ValueError names the key."""
    form, colon, path = text.partition(":")
    own = bool(colon) and form in FORMATS
    if not own:
        form, path = config.format, text
    split = ""
    if "#" in path and not Path(path).expanduser().exists():
        path, _, split = path.rpartition("#")
    place = Path(path).expanduser()
    folder = place if place.is_dir() else place.parent
    if config.image_folder and not own:
        folder = Path(config.image_folder).expanduser()
    try:
        source = Source(
            path=path,
            form=form,
            fields={} if own else config.fields,
            split=split,
            categories=tuple(categories),
            golds=golds,
            responses=responses,
        )
    except ValueError as error:
        raise ValueError(f"{key}={text}: {error}") from None
    return source, folder


def read_source(
    config: DataConfig,
    key: str,
    source: Source,
    folder: Path,
    everything: Quarantine,
    where: str,
    *,
    quarantine: Quarantine | None = None,
    unusable: UnusableGolds | None = None,
) -> list[Problem]:
    """The problems of the source that `key` names; rows set aside are counted in `quarantine` and join the list of
    `everything`, which will be in the file `where`; `unusable`: see `read_problems`. ValueError names the key when it
    cannot be read, is empty, or has too many of them."""
    quarantine = Quarantine() if quarantine is None else quarantine
    images = ImageFiles(folder, _cache(config) / "images", limits_of(config), config.check_images)
    try:
        problems = list(read_problems(source, images, quarantine, unusable))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    finally:
        everything.listed += quarantine.listed
    quarantine.settle(key, config.max_quarantined, where)
    if not problems:
        split = f"#{source.split}" if source.split else ""
        why = f": {quarantine.in_words()}" if quarantine.total else ""
        raise ValueError(f"{key}={source.path}{split}: no problems among {quarantine.rows} rows{why}")
    return problems


def some(problems: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """At most `count` of the problems, in their order: which, depends on the seed and their ids alone."""
    if len(problems) <= count:
        return list(problems)
    chosen = {problem.id for problem in _drawn(problems, seed)[:count]}
    return [problem for problem in problems if problem.id in chosen]


def hold_out(problems: list[Problem], counts: dict[str, int], seed: int) -> dict[str, list[Problem]]:
    """Sets of `counts` problems drawn from `problems`, and as "train" what is left.

    No two of the sets share a problem: those that ask the same about the same images go with the first of them.
    ValueError when that would be more than half of them.
    """
    if not counts:
        return {"train": problems}
    if 2 * sum(counts.values()) > len(problems):
        keys = ", ".join(f"data.{name}_problems={count}" for name, count in counts.items())
        raise ValueError(
            f"{keys}: held out of {len(problems)} training problems; allowed: at most half, or files of their own"
        )
    drawn, held = iter(_drawn(problems, seed)), {}
    taken: set[tuple] = set()
    contents = _Contents()
    for name, count in counts.items():
        held[name] = []
        while len(held[name]) < count and (problem := next(drawn, None)) is not None:
            if (said := contents.of(problem)) not in taken:
                taken.add(said)
                held[name].append(problem)
    questions = {question for question, _ in taken}
    left = [p for p in problems if question_of(p) not in questions or contents.of(p) not in taken]
    return {"train": left, **held}


def _drawn(problems: Iterable[Problem], seed: int) -> list[Problem]:
    """The problems in an order that depends on the seed and their ids alone."""
    return sorted(problems, key=lambda problem: hashlib.sha256(f"{seed}/{problem.id}".encode()).digest())


def question_of(problem: Problem) -> str:
    """The question, white space and case aside."""
    return " ".join(problem.question.split()).casefold()


class _Contents:
    """What problems ask about what: the question, and the bytes of their images, each file read once."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def of(self, problem: Problem) -> tuple[str, tuple[bytes, ...]]:
        return question_of(problem), tuple(map(self._digest, problem.images))

    def _digest(self, image: Path | str) -> bytes:
        name = os.fspath(image)
        if name not in self._digests:
            self._digests[name] = hashlib.sha256(Path(image).read_bytes()).digest()
        return self._digests[name]
