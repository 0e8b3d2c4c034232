"""The command line: `python -m mstar_engine.run [recipe.yaml] [key=value ...]`.

python -m mstar_engine.run                                   the default run: handwritten digits, some minutes
python -m mstar_engine.run smoke                             every stage in seconds
python -m mstar_engine.run my.yaml rollout.temperature=0.8   a recipe of yours, with one value changed
python -m mstar_engine.run my.yaml --print_config            what that amounts to
python -m mstar_engine.run my.yaml --dry_run                 what it would do, and the memory it needs
python -m mstar_engine.run my.yaml --resume                  go on where a run stopped
python -m mstar_engine.run preset=rest_em                    a row of the paper's tables
python -m mstar_engine.run ablation=paper_methods seeds=5    a whole table, beside the paper's; goes on where it stopped
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mstar_engine.config_parse import ConfigError, dump_config, load_config
from mstar_engine.models.image_library import misfit
from mstar_engine.presets import ablation_named

if TYPE_CHECKING:
    from mstar_engine.evolve.ablation import AblationOptions


ABLATION_KEYS = ("ablation", "seeds", "jobs", "results")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Command-line arguments to options, with `recipe` (or None), `overrides` and `ablation` (those of ABLATION_KEYS).

    Raises ConfigError with one line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mstar_engine.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="*", metavar="recipe.yaml | key=value", help="a recipe, then overrides")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--dry_run", action="store_true", help="read the data, print what a run would do and need, and stop"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in output_dir where it stopped")
    options = parser.parse_intermixed_args(argv)
    recipes = [argument for argument in options.arguments if "=" not in argument]
    if len(recipes) > 1:
        raise ConfigError(
            f"{len(recipes)} recipes given ({', '.join(recipes)}); allowed: one, then key=value overrides"
        )
    options.recipe = recipes[0] if recipes else None
    pairs = [argument.partition("=") for argument in options.arguments if "=" in argument]
    options.ablation = {key: value for key, _, value in pairs if key in ABLATION_KEYS}
    options.overrides = [f"{key}={value}" for key, _, value in pairs if key not in ABLATION_KEYS]
    if options.ablation and "ablation" not in options.ablation:
        raise ConfigError(f"{next(iter(options.ablation))}: only with ablation=, as in ablation=paper_methods seeds=5")
    return options


def ablation_options(given: dict[str, str]) -> AblationOptions:
    """The options of an ablation. ConfigError names a value that is no whole number of 1 or more."""
    from mstar_engine.evolve.ablation import AblationOptions

    for key in ("seeds", "jobs"):
        if key in given and not (given[key].isascii() and given[key].isdigit() and int(given[key]) > 0):
            raise ConfigError(f"{key}={given[key]}; allowed: a whole number, 1 or more")
    numbers = {key: int(given[key]) for key in ("seeds", "jobs") if key in given}
    return AblationOptions(name=given["ablation"], results=given.get("results", ""), **numbers)


def busy_share(seconds: float = 0.3) -> float:
    """How busy the machine's processors are at this moment, 0 to 1; 0 where /proc/stat does not say.

    The load average will not do: it is still high when a machine has just been busy, installing this package, say.
    """

    def ticks() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return sum(fields), fields[3] + fields[4]

    try:
        before = ticks()
        time.sleep(seconds)
        total, idle = (now - then for now, then in zip(ticks(), before))
    except (OSError, ValueError, IndexError):
        return 0.0
    return 1 - idle / total if total else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the process's exit status: 0 done, 1 stopped by an error, 2 refused before work, 130 interrupted."""
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        if options.ablation:
            ablation_named(options.ablation["ablation"])
            return _ablation(options)
        config = load_config(options.recipe, options.overrides)
    except ConfigError as error:
        print(f"mstar_engine: {error}", file=sys.stderr)
        return 2
    if options.print_config:
        print(dump_config(config), end="")
        return 0
    print(
        f"mstar_engine: {config.model.model_name_or_path} on {config.data.dataset_name}, {config.output_dir}",
        flush=True,
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if busy_share() > 0.25:
        # On a machine that is busy already, threads that spin while they wait hold up the ones they wait for.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        # These import torch and transformers: seconds.
        if options.dry_run:
            from mstar_engine.evolve.dry_run import dry_run

            return dry_run(config)
        from mstar_engine.evolve.session import start

        return start(config, options.resume)
    except KeyboardInterrupt:
        print(f"\nmstar_engine: interrupted; {config.output_dir} is intact, continue with --resume", file=sys.stderr)
        return 130
    except ImportError as error:
        if (said := misfit(error)) is None:
            raise
        print(f"mstar_engine: {said}", file=sys.stderr)
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"mstar_engine: {error}", file=sys.stderr)
        return 1


def _ablation(options: argparse.Namespace) -> int:
    """Run an ablation; it is resumable by nature, so `--resume` changes nothing."""
    if options.print_config:
        raise ConfigError(
            "--print_config: an ablation has many configurations; name one with preset=, or use --dry_run"
        )
    from mstar_engine.evolve.ablation import run_ablation

    try:
        return run_ablation(
            ablation_options(options.ablation), options.recipe, options.overrides, dry_run=options.dry_run
        )
    except KeyboardInterrupt:
        print("\nmstar_engine: interrupted; the runs are intact, the same command goes on", file=sys.stderr)
        return 130
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        print(f"mstar_engine: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
