"""The command line: `python -m mstar_engine.run [recipe.yaml] [key=value ...]`.

python -m mstar_engine.run                                   the default run: handwritten digits, some minutes
python -m mstar_engine.run smoke                             every stage in seconds
python -m mstar_engine.run my.yaml rollout.temperature=0.8   a recipe of yours, with one value changed
python -m mstar_engine.run my.yaml --print_config            what that amounts to
python -m mstar_engine.run my.yaml --dry_run                 load everything, do nothing
python -m mstar_engine.run my.yaml --resume                  go on where a run stopped
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

if TYPE_CHECKING:
    from mstar_engine.config import RunConfig


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, RunConfig]:
    """Command-line arguments to options and a checked configuration. Raises ConfigError with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m mstar_engine.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="*", metavar="recipe.yaml | key=value", help="a recipe, then overrides")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--dry_run", action="store_true", help="load model and data, print what a run would do, and stop"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in output_dir where it stopped")
    options = parser.parse_intermixed_args(argv)
    recipes = [argument for argument in options.arguments if "=" not in argument]
    overrides = [argument for argument in options.arguments if "=" in argument]
    if len(recipes) > 1:
        raise ConfigError(
            f"{len(recipes)} recipes given ({', '.join(recipes)}); allowed: one, then key=value overrides"
        )
    return options, load_config(recipes[0] if recipes else None, overrides)


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
        options, config = parse(sys.argv[1:] if argv is None else argv)
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
        from mstar_engine.evolve.session import dry_run, start  # imports torch and transformers: seconds

        return dry_run(config) if options.dry_run else start(config, options.resume)
    except KeyboardInterrupt:
        print(f"\nmstar_engine: interrupted; {config.output_dir} is intact, continue with --resume", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"mstar_engine: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
