"""Writes a config as YAML, each value followed by its origin."""

from typing import Any

import yaml

from mmsft.config.origins import Key, Origins
from mmsft.config.run import RunConfig


def dump_config(config: RunConfig, origins: Origins) -> str:
    """Returns the resolved config as YAML that `read_config` reads back to the same values."""
    lines = ["# The resolved configuration of this run; behind each value, where it was stated.", ""]
    lines += _dump(config.model_dump(mode="json"), (), origins, 0)
    return "\n".join(lines) + "\n"


def _dump(value: dict[str, Any] | list[Any], key: Key, origins: Origins, depth: int) -> list[str]:
    lines: list[str] = []
    pad = "  " * depth
    for name, child in value.items() if isinstance(value, dict) else enumerate(value):
        inner = (*key, name)
        head = pad + (f"{_key(name)}:" if isinstance(name, str) else "-")
        if isinstance(child, dict | list) and child:
            inside = _dump(child, inner, origins, depth + 1)
            # An item of a list begins on the line of its dash.
            lines += [head, *inside] if isinstance(value, dict) else [f"{head} {inside[0].lstrip()}", *inside[1:]]
            continue
        # A list's items have no origin of their own where the list is a default or was stated as a single text.
        origin = origins.find(inner if inner in origins.of or isinstance(value, dict) else key)
        lines.append(f"{head} {_scalar(child)}  # {' '.join(origin.split())}")
    return lines


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else _scalar(name)


def _scalar(value: Any) -> str:
    style = '"' if isinstance(value, str) else None
    text: str = yaml.safe_dump(
        value, default_style=style, default_flow_style=True, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("\n").removesuffix("\n...")
