"""From a recipe and overrides to a RunConfig, and back to text; every mistake becomes one line that names its key.

A recipe is a YAML file with only what differs from the defaults, or from the recipe that it `extends`. It may name a
`preset` (a row of the paper's tables), which its own keys are laid over; one named on the command line is laid over the
recipe, and the other overrides over that.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mstar_engine.config import RunConfig
from mstar_engine.config_data import SAMPLED_WARMUP, WarmupConfig
from mstar_engine.presets import preset_mapping
from mstar_engine.prompt_template import PLAIN
from mstar_engine.yaml_text import ConfigError, one_line, parse_yaml, write_yaml

RECIPES = Path(__file__).parent / "recipes"
# A run is the same run wherever it writes, whoever watches, on however many cores and in however many sittings.
NOT_IDENTITY = (
    "output_dir",
    "stages",
    "threads",
    "preset",
    "report_to",
    # Draws are addressed, so how many run at once and in how much memory changes no outcome.
    "rollout.max_rows",
    "rollout.block_size",
    "rollout.kv_cache_memory",
    # The same draws up to rounding, another way through a decode step.
    "rollout.decode",
    "rollout.torch_compile",
    "rollout.image_cache_memory",
    # The same problems, whether a run may start with them, and where their images are kept.
    "data.max_quarantined",
    "data.cache_dir",
    "data.image_cache_bytes",
    "answers.latex_workers",
    "rollout.merge_lora",
    # The same sums in another order, so that what ran out of memory can go on.
    "model.device",
    "train.max_tokens",
    "train.packing",
    "train.gradient_checkpointing",
    "train.use_liger_kernel",
)
# Keys that came later, with what runs did without them: a run directory that lacks one is no other run.
LATER = {
    "train.bf16": False,
    **dict.fromkeys((f"data.{name}" for name in ("train", "unlabelled", "warmup", "validation", "test", "ood")), ""),
    "data.format": "rows",
    "data.image_folder": "",
    "data.limit": 0,
    "data.check_images": "decode",
    "data.max_image_bytes": 64 << 20,
    "data.max_image_pixels": 50_000_000,
    "answers.extract": [],
    "answers.variant": "strict",
    "answers.latex_timeout": 5.0,
    "model.trust_remote_code": False,
    "model.lora_r": 0,
    "model.lora_alpha": 32.0,
    "model.lora_dropout": 0.0,
    "model.lora_target_modules": "all-linear",
    "model.freeze_vision_tower": False,
    "prompts.system": "",
    "prompts.template": PLAIN,
    "warmup.source": "demonstrations",
    "warmup.gradient_accumulation_steps": 1,
    **{f"warmup.{name}": getattr(WarmupConfig(), name) for name in SAMPLED_WARMUP},  # which demonstrations do not need
    "evaluate.n": 0,
    "evaluate.limit": 0,
}

# What other trainers call the same thing.
SYNONYMS = {
    "lr": "learning_rate",
    "num_generations": "n",
    "num_return_sequences": "n",
    "max_tokens": "max_completion_length",
    "max_new_tokens": "max_completion_length",
    "batch_size": "per_device_train_batch_size",
    "model_name": "model_name_or_path",
    "num_iterations": "iterations",
    "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
    "freeze_vit": "freeze_vision_tower",
}


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(str(error))}") from None
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds {_given(value)}; allowed: a mapping of keys to values")
    return value


# ---- recipes and overrides


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _recipe_path(name: Path | str, beside: Path | None = None) -> Path:
    """A shipped recipe's name, or a file; a relative file is looked for beside the recipe that names it first."""
    if isinstance(name, str) and name in recipe_names():
        return RECIPES / f"{name}.yaml"
    path = Path(name)
    if beside is not None and (beside / path).is_file():
        return beside / path
    if not path.is_file():
        shipped = ", ".join(recipe_names())
        raise ConfigError(f"recipe {str(name)!r}: no such file, and no recipe of that name; recipes: {shipped}")
    return path


def _read_recipe(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The recipe's mapping laid over the one it `extends`."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: extends itself (through {' -> '.join(p.name for p in seen)})")
    mapping = _read_mapping(path)
    base = mapping.pop("extends", None)
    if "preset" in mapping:
        mapping = merge(_preset(mapping["preset"], str(path)), mapping)
    if base is None:
        return mapping
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends={_given(base)}; allowed: a recipe's name or file")
    return merge(_read_recipe(_recipe_path(base, path.parent), (*seen, path)), mapping)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, section by section. A mapping that is a key's value (data.fields) is one value."""
    merged = dict(below)
    for key, value in above.items():
        sections = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merged[key] | value if sections else value
    return merged


def _preset(name: Any, where: str) -> dict[str, Any]:
    """The mapping of a preset that a recipe or the command line names."""
    if not isinstance(name, str):
        raise ConfigError(f"{where}: preset={_given(name)}; allowed: the name of a preset")
    return preset_mapping(name)


def _override(text: str) -> dict[str, Any]:
    """`a.b=value` as the mapping `{a: {b: value}}`."""
    dotted, equals, raw = text.partition("=")
    dotted = dotted.strip()
    if not equals or not dotted:
        raise ConfigError(f"{one_line(text)!r}: an override is written key=value, as in rollout.temperature=0.9")
    leaf = _annotation(dotted)
    if leaf is None:
        raise _unknown(dotted)
    try:
        value = parse_yaml(raw, dotted)
    except ConfigError:  # a template begins like a mapping
        value = None
        if not _is_text(leaf) or "{" not in raw:
            raise
    if _is_text(leaf) and not isinstance(value, str):
        value = raw.strip()
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def load_config(recipe: Path | str | None = None, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The configuration of `recipe` (a shipped name, a file, or None for the defaults) with `overrides` laid over it.

    Raises ConfigError, a ValueError whose message is one line naming the key, what was given and what is allowed.
    """
    mapping = {} if recipe is None else _read_recipe(_recipe_path(recipe))
    above = [_override(text) for text in overrides]
    for named in [one["preset"] for one in above if "preset" in one]:
        mapping = merge(mapping, _preset(named, "command line"))
    for one in above:
        mapping = merge(mapping, one)
    return build_config(mapping)


def build_config(mapping: dict[str, Any]) -> RunConfig:
    """A RunConfig from a nested mapping; ConfigError as in `load_config`."""
    return _build(RunConfig, mapping, "")


def _build(cls: type, mapping: Any, prefix: str) -> Any:
    if not isinstance(mapping, dict):
        name, keys = prefix.rstrip("."), ", ".join(_fields(cls))
        raise ConfigError(f"{name}={_given(mapping)}; allowed: a section with {keys}{_elsewhere(name)}")
    fields, values = _fields(cls), {}
    for key, value in mapping.items():
        if key not in fields:
            raise _unknown(f"{prefix}{key}")
        inner = fields[key]
        values[key] = _build(inner, value, f"{prefix}{key}.") if dataclasses.is_dataclass(inner) else value
    try:
        return cls(**values)
    except ValidationError as error:
        raise _refused(error, cls, prefix, values) from None


# ---- messages


def _fields(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _annotation(dotted: str) -> Any:
    """The type of a dotted key; None when there is no such key."""
    here: Any = RunConfig
    for part in dotted.split("."):
        if not dataclasses.is_dataclass(here) or part not in _fields(here):
            return None
        here = _fields(here)[part]
    return here


def known_keys(cls: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key, sections included."""
    keys = []
    for name, kind in _fields(cls).items():
        keys.append(prefix + name)
        if dataclasses.is_dataclass(kind):
            keys += known_keys(kind, f"{prefix}{name}.")
    return keys


def _elsewhere(section: str) -> str:
    """Where the key is that a section's name was taken for, if it is one elsewhere."""
    found = sorted((key for key in known_keys() if key.endswith(f".{section}")), key=lambda key: key[:7] != "rollout")
    return f"; did you mean {found[0]}?" if found else ""


def _unknown(dotted: str) -> ConfigError:
    keys, section, last = known_keys(), dotted.rpartition(".")[0], dotted.rpartition(".")[2]
    last = SYNONYMS.get(last, last)
    wanted = f"{section}.{last}" if section else last
    namesakes = [key for key in keys if key.rpartition(".")[2] == last]
    near = [wanted] if wanted in keys else []
    near += [f"rollout.{last}"] if not section and f"rollout.{last}" in keys else []
    near += difflib.get_close_matches(wanted, namesakes, n=1, cutoff=0.0)
    near += difflib.get_close_matches(wanted, keys, n=1, cutoff=0.0)
    return ConfigError(f"{one_line(dotted)}: unknown key; did you mean {near[0]}?")


def _refused(error: ValidationError, cls: type, prefix: str, values: dict[str, Any]) -> ConfigError:
    """The first complaint, in our words: dotted key, what was given, what is allowed."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    key, given = f"{prefix}{name}", values.get(name, first["input"])
    reason = first["ctx"]["error"] if first["type"] == "value_error" else None
    if reason is None:
        allowed = describe(_fields(cls)[name])
    elif len(reason.args) == 3:  # a check across sections names the key itself
        key, given, allowed = reason.args
    else:
        allowed = str(reason)
    return ConfigError(f"{key}={_given(given)}; allowed: {one_line(allowed)}")


def _given(value: Any) -> str:
    text = one_line(json.dumps(value, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


def describe(kind: Any) -> str:
    """In words, what a field of this type may hold."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(args) if len(args) < 3 else "one of " + ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return "; or ".join(describe(arg) for arg in args)
    if origin is list:
        names = get_args(args[0]) if get_origin(args[0]) is Literal else ("text",)
        return f"a list of {', '.join(map(str, names))}"
    if origin is dict:
        keys = ", ".join(get_args(args[0])) if get_origin(args[0]) is Literal else "names"
        value = get_args(args[1])[0] if get_origin(args[1]) is Annotated else args[1]
        return f"a mapping of {keys} to " + ("names" if value is str else "lists of names")
    if origin is Annotated:
        return ", ".join([describe(args[0]), *_bounds(args[1:])])
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    words = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "not empty"}
    found = []
    for item in metadata:
        for constraint in item.metadata if isinstance(item, FieldInfo) else [item]:
            found += [text.format(getattr(constraint, key)) for key, text in words.items() if hasattr(constraint, key)]
    return found


def _is_text(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is Annotated and get_args(kind)[0] is str)


# ---- text and identity


def dump_config(config: RunConfig) -> str:
    """The whole configuration as YAML; `build_config` of it gives an equal one."""
    return write_yaml(dataclasses.asdict(config))


def flat_config(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value, for comparing two configurations."""
    flat = {}
    for key, value in mapping.items():
        flat |= flat_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def identity(mapping: dict[str, Any]) -> dict[str, Any]:
    """The flat keys that decide what a run computes; those in `LATER` where they change something."""
    flat = flat_config(mapping)
    return {key: flat[key] for key in flat if key not in NOT_IDENTITY and (key not in LATER or flat[key] != LATER[key])}


def config_hash(config: RunConfig) -> str:
    """16 hex digits that change with anything that changes what the run computes."""
    canonical = json.dumps(identity(dataclasses.asdict(config)), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
