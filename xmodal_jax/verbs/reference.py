"""The page of all config keys, docs/config.md, from where defaults, meanings and ranges are kept.

python -m xmodal_jax.verbs.reference docs/config.md
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xmodal_jax import config as configs
from xmodal_jax import models
from xmodal_jax.defaults import MEANINGS, base
from xmodal_jax.digest import write
from xmodal_jax.training.checks import find

HEAD = """# Config keys

Made by `python -m xmodal_jax.verbs.reference docs/config.md`; a test holds it against the code. Every key is set by
`--config.KEY=VALUE` of `xmodal train`, or in a config file. A config under `configs/` sets what its paper says, so a
value there may differ; so do `scenes` and `tiny` in its argument, settings for the small built-in set and for tests.
Values outside the range are refused before anything is made.

"""
SYSTEMS = """
## Keys of a system, config.model

Defaults are those of the model; the configs give each of their keys. Meanings are what the model's class documents.
"""


def config_page() -> str:
    """The page, as Markdown."""
    defaults = configs.flatten(base("own"))
    rows = [
        (key, _shown(defaults.get(key)), _range(key, "vse", defaults.get(key)), meaning)
        for key, meaning in MEANINGS.items()
    ]
    parts = [HEAD, _table(rows), SYSTEMS]
    for module in pkgutil.iter_modules(models.__path__):
        model = importlib.import_module(f"{models.__name__}.{module.name}").Model
        meanings = attributes(model)
        fields = [f for f in dataclasses.fields(model) if f.name not in ("parent", "name", "vocabulary", "vector_dim")]
        rows = [
            (
                f"model.{field.name}",
                _shown(field.default),
                _range(f"model.{field.name}", module.name, field.default),
                meanings.get(field.name) or MEANINGS[f"model.{field.name}"],
            )
            for field in fields
        ]
        parts.append(f"\n### {module.name}\n\n{_table(rows)}")
    return "".join(parts)


def attributes(model: type) -> dict[str, str]:
    """What a model's class, and those that it extends, document of each of its fields."""
    found = attributes(model.__bases__[0]) if model.__bases__ else {}
    _, _, text = (inspect.getdoc(model) or "").partition("Attributes:\n")
    for entry in re.findall(r"^ {4}(\S.*(?:\n {8}.*)*)", text, re.MULTILINE):
        names, _, meaning = " ".join(entry.split()).partition(": ")
        meaning = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", meaning).replace("``", "`").rstrip(".")
        found |= dict.fromkeys(names.split(", "), meaning)
    return found


def _shown(value: Any) -> str:
    if value is None or value is dataclasses.MISSING:
        return "by config"
    return f"`{tuple(value) if isinstance(value, list) else value!r}`"


def _range(key: str, system: str, value: Any) -> str:
    check = find(key, system)
    return check.words if check else {bool: "True or False", str: "text"}.get(type(value), "")


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| key | default | range | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{key}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for key, *cells in rows]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> Any:
    return write(Path(arguments[0]), config_page()) if arguments else print(config_page(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
