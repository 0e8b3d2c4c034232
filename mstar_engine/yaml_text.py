"""YAML as people expect it: the scalars of YAML 1.2, every mistake one line.

`1e-6` is a number, `no` is text, `010` is ten, and a key given twice is an error. What `write_yaml`
writes, `parse_yaml` reads back equal, and so does a YAML 1.1 reader.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that names the key."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, no repeated keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Refuse a repeated key: PyYAML would keep the last one silently."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: {key!r} is a key; a key must be text")
            if key in seen:
                raise ConfigError(f"line {line}: {key} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: _integer(node))
_Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", _float(value)))
_Dumper.add_representer(str, lambda dumper, value: _text(dumper, value))


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML writes these line ends as they are unless the text is in double quotes, and reads them back as spaces.
    style = '"' if re.search("[\\r\x85\u2028\u2029\ufeff]", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _integer(node: yaml.ScalarNode) -> int:
    if len(node.value) > 40:
        raise ConfigError(f"line {node.start_mark.line + 1}: a whole number of {len(node.value)} digits is too long")
    return int(node.value, 10)


def _float(value: float) -> str:
    text = repr(value).replace("inf", ".inf").replace("nan", ".nan")
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def parse_yaml(text: str, where: str) -> Any:
    """The value in `text`; ConfigError with `where` and the line when it is no YAML or repeats a key."""
    try:
        return yaml.load(text, _Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(f"{where}:{line} not valid YAML: {one_line(error.problem or error.context or '')}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {one_line(str(error))}") from None


def one_line(text: str) -> str:
    return " ".join(text.split())


def write_yaml(value: Any) -> str:
    """`value` (mappings, lists, scalars) as YAML, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
