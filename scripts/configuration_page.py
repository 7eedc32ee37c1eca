"""Writes docs/configuration.md from the config's models, which hold names, types, defaults and meanings."""

import dataclasses
import json
import re
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from mmsft.adapters import ADAPTERS
from mmsft.config import RunConfig
from mmsft.config.schema import is_model, plain
from mmsft.modalities import MODALITIES

PAGE: Final = Path(__file__).parent.parent / "docs" / "configuration.md"
INTRODUCTION: Final = """\
# Configuration

A run is one YAML file. `mmsft train run.yaml key=value …` reads it, with overrides: dotted keys, YAML values, stages by
number or by name: `stages.align.duration='100 steps'`. What is not listed here is refused, with a suggestion, and all
problems of a file are reported at once. The run folder's `config.yaml` is the resolved config, with the origin of each
value; it can be run again.

- Paths are relative to the working directory; `~` and `$VARIABLES` are expanded, and `asset:NAME/FILE` is a file that
  `mmsft assets fetch NAME` brought.
- An amount is a number and its unit: `2 epochs`, `4000 steps`, `1e9 tokens`, `256 examples`. An example is one
  row.
- Several processes each hold the whole model and take a share of every step; together they learn what one learns:
  `accelerate launch --num_processes 2 -m mmsft train run.yaml`, or
  `torchrun --nproc_per_node 2 -m mmsft train run.yaml` (without a GPU, `ACCELERATE_USE_CPU=true` before it).
- A run that was stopped goes on with the same command. Settings that decide no weight beyond its rounding may change
  meanwhile: `out` (with the folder), `workers`, `features`, `tokens`, `save` and `loggers`; a stage's `micro_batch`,
  `activation_checkpointing` and `evaluate`; a recipe's `budget`; a source's `licence`, `tags` and `media_root`.
- Scalars are those of YAML 1.2: `1e-3` is a number; `yes`, `off` and `12:30` are text. Anchors and `<<` work.

This page is written by `python -m scripts.configuration_page`; a test compares it with the code.
"""


def page() -> str:
    """Returns the page: one section a model, in the order in which a config meets them."""
    models: list[type[BaseModel]] = []
    _collect(RunConfig, models)
    sections = [_section(model) for model in models]
    for role, kinds in (("modality", MODALITIES), ("adapter", ADAPTERS)):
        sections += [_kind(role, name, kind) for name, kind in kinds.items()]
    return INTRODUCTION + "".join(sections)


def _collect(model: type[BaseModel], models: list[type[BaseModel]]) -> None:
    models.append(model)
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            if inner not in models:
                _collect(inner, models)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    at = plain(annotation)
    return [at] if is_model(at) else [model for argument in get_args(at) for model in _models_in(argument)]


def _section(model: type[BaseModel]) -> str:
    summary, meanings = _documented(model)
    lines = [
        "",
        f"## {_title(model)}",
        "",
        _markdown(summary),
        "",
        "| setting | takes | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        lines.append(f"| `{name}` | {_takes(field)} | {_default(field)} | {_markdown(meanings[name])} |")
    return "\n".join(lines) + "\n"


def _kind(role: str, name: str, kind: type) -> str:
    summary, meanings = _documented(kind)
    lines = ["", f"## {role}: `{name}`", "", summary]
    if settings := [field for field in dataclasses.fields(kind) if field.init]:
        lines += ["", "| setting | default | meaning |", "|---|---|---|"]
    for field in settings:
        lines.append(f"| `{field.name}` | {_stated(field.default)} | {_markdown(meanings[field.name])} |")
    return "\n".join(lines) + "\n"


def _stated(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "required"
    return "its defaults" if dataclasses.is_dataclass(default) else f"`{json.dumps(default)}`"


def _documented(model: type) -> tuple[str, dict[str, str]]:
    """Returns a docstring's summary, and the meanings of the attributes, also of those that are inherited."""
    meanings: dict[str, str] = {}
    for base in reversed(model.__mro__):
        attributes = (base.__doc__ or "").partition("Attributes:")[2]
        meanings.update(re.findall(r"^ {8}(\w+): (.*(?:\n {10,}.*)*)", attributes, re.MULTILINE))
    return _markdown((model.__doc__ or "").partition("Attributes:")[0]), meanings


def _title(model: type[BaseModel]) -> str:
    return model.__name__.removesuffix("Config")


def _markdown(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("None =", "null =").split()).replace("|", "\\|")


def _takes(field: FieldInfo) -> str:
    off = " or null" if type(None) in get_args(field.annotation) else ""
    return (field.description or _described(field.annotation) or _words(field.annotation) + _bounds(field)) + off


def _described(annotation: Any) -> str | None:
    """Returns the description of a type inside ``… | None``."""
    if get_origin(annotation) not in (Union, UnionType):
        return None
    parts = [part for inner in get_args(annotation) for part in getattr(inner, "__metadata__", ())]
    return next((part.description for part in parts if isinstance(part, FieldInfo)), None)


def _words(annotation: Any) -> str:
    at = plain(annotation)
    if inner := _models_in(at):
        title = _title(inner[0])
        link = f"[{title}](#{title.lower()})"
        return {dict: f"name → {link}", tuple: f"list of {link}"}.get(get_origin(at), link)
    if get_origin(at) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(at))
    if get_origin(at) is dict:
        return "mapping"
    if get_origin(at) is tuple:
        return "list of " + " and ".join(_words(argument) for argument in get_args(at))
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}[at]


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = {sign: getattr(part, sign) for part in field.metadata for sign in signs if hasattr(part, sign)}
    return "".join(f" {signs[sign]} {bound}" for sign, bound in found.items())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, ByteSize):
        return f"`{value.human_readable(decimal=True, separator=' ').replace('.0 ', ' ')}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{json.dumps(value) if value is None or isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
