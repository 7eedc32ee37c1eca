"""The style of pages: what is written can be read in both schemes, and nothing is loaded from elsewhere."""

import re
from pathlib import Path

import pytest

from mmsft import report
from mmsft.report.page import visible
from mmsft.report.rows import shade

STYLE = (Path(report.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
BLOCKS = re.findall(r":root \{(.*?)\}", STYLE, re.S)[:2]  # the third is for print
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in BLOCKS)
Colour = tuple[float, float, float]


def colour(value: str) -> Colour:
    """Returns red, green and blue of 0 … 255."""
    parts = [int(value[at : at + 2], 16) for at in (1, 3, 5)] if value[0] == "#" else re.findall(r"\d+", value)
    red, green, blue = map(float, parts)
    return red, green, blue


def contrast(one: Colour, other: Colour) -> float:
    """Returns the contrast ratio of WCAG 2.2, from 1 to 21."""

    def luminance(rgb: Colour) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: dict[str, str]) -> None:
    grounds = [colour(scheme[name]) for name in ("ground", "panel")]
    for name in ("text", "quiet", "control", "media", "error", "link"):
        assert all(contrast(colour(scheme[name]), ground) >= 4.5 for ground in grounds), name
    for ground in grounds:
        # Learned text stands on green of the greatest weight.
        part, over = float(shade(1.0)), colour(scheme["green"])
        red, green, blue = (part * top + (1 - part) * below for top, below in zip(over, ground, strict=True))
        assert contrast(colour(scheme["text"]), (red, green, blue)) >= 4.5


def test_the_style_loads_nothing_and_serves_print() -> None:
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert "@media print" in STYLE
    # Paper is white, whatever the screen's scheme is.
    assert re.findall(r"@media ([^{]*)dark", STYLE) == ["screen and (prefers-color-scheme: "]


def test_only_characters_that_are_obeyed_unseen_are_replaced() -> None:
    kept = "a\n\t é 日本 مرحبا 👩‍👧 \u200e"
    assert visible(kept) == kept
    assert visible("\x00\x1b\x7f\x85\u202a\u2069") == "␀␛␡␡[U+202A][U+2069]"
