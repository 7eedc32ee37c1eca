"""Renders a page: one HTML file without network or script, in which what rows hold is text and nothing else."""

from functools import lru_cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

# Rows may hold what a browser obeys unseen. Unicode has a picture of each control character, from U+2400 on; it has
# none of those that turn the direction of what follows, and let a text look like another one.
_UNSEEN: Final = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(127, 160), "\u2421"),
    **{code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}


def page(template: str, **values: Any) -> str:
    """Returns a page.

    Args:
        template: its name in ``mmsft/report/templates``.
        values: what it shows; all text in them is escaped.
    """
    return _environment().get_template(f"{template}.html").render(values)


def visible(text: str) -> str:
    """Returns a text in which characters that are not seen, but obeyed, are pictures."""
    return text.translate(_UNSEEN)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmsft.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "count": "{:,.0f}".format, "part": "{:.1%}".format}
    return environment
