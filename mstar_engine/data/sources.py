"""Problem sets by name: what a run trains on, watches and is judged by."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from mstar_engine.config import DataConfig
from mstar_engine.data.digits import captions, demonstrations, digits_problems
from mstar_engine.data.files import read_sets
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.data.reader import UnusableGolds
from mstar_engine.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """The problem sets of a run, disjoint. `warmup` has responses to imitate; the others have golds.

    Those of `unlabelled`, where it has any, are for the oracle and for measuring pseudo-labels; `checks` says what must
    hold.
    """

    warmup: list[Problem]
    train: list[Problem]
    validation: list[Problem]
    test: list[Problem]
    ood: list[Problem]
    unlabelled: list[Problem] = field(default_factory=list)


def load_data(
    config: DataConfig,
    seed: int,
    listed: Path | None = None,
    *,
    train_needed: bool = True,
    counted: dict[str, Quarantine] | None = None,
    unusable: UnusableGolds | None = None,
) -> DataSet:
    """The data set that the configuration names. ValueError for one that cannot be read, or an empty set.

    `listed`: where to name the rows of files that are set aside; nowhere by default. `train_needed`: a run that learns
    nothing does without a training file. `counted` gets what was read and set aside by set. `unusable` says which
    reference answers no verdict can rest on: their rows are set aside as well.
    """
    if config.dataset_name == "files":
        sets = read_sets(config, seed, listed, train_needed=train_needed, counted=counted, unusable=unusable)
        return DataSet(**sets)
    worked = demonstrations(config.demonstrations, seed)
    # Reading is kept alive during the warm-up, or the short demonstration set wears it down.
    mixed = worked + captions(config.warmup_captions, seed + 1)
    random.Random(f"warmup/{seed}").shuffle(mixed)
    drawn = digits_problems("train", config.train_problems + config.unlabelled_problems, seed)
    return DataSet(
        warmup=mixed,
        train=drawn[: config.train_problems],
        unlabelled=drawn[config.train_problems :],
        validation=digits_problems("validation", config.validation_problems, seed),
        test=digits_problems("test", config.test_problems, seed),
        ood=digits_problems("ood", config.ood_problems, seed),
    )
