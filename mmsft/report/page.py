"""Renders a page: one HTML file that needs no network, in which what rows hold is text and nothing else."""

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def page(template: str, **values: Any) -> str:
    """Returns a page.

    Args:
        template: its name in ``mmsft/report/templates``.
        values: what it shows; all text in them is escaped.
    """
    return _environment().get_template(f"{template}.html").render(values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("mmsft.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
