"""Tells results as tables: on the terminal, and as Markdown for docs/benchmarks.md."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

Rows = Sequence[Sequence[str]]


def tables(results: dict[str, Any]) -> dict[str, Rows]:
    """Returns the tables by title, the first row of each its head; those without content are left out."""
    told: dict[str, list[tuple[str, ...]]] = {
        "Rates and memory": [
            ("workload", "precision", "side", "median", "least … most", "unit", "peak GB", "mmsft ÷ it"),
            *rates(results),
        ],
        "Beside what is to be reached": [
            ("workload", "precision", "side", "speed", "wanted", "memory", "wanted"),
            *goals(results),
        ],
        "Losses on the same rows": [
            ("workload", "precision", "side", "steps", "first step apart", "most apart", "same targets"),
            *losses(results),
        ],
        "T1's part of the matmul peak": [
            ("precision", "peak GFLOP/s", "rounds"),
            *[
                (name, f"{max(results['matmul_gflops'][name].values()):.0f}", ", ".join(f"{it:.0%}" for it in parts))
                for name, parts in results["roofline"].items()
            ],
        ],
    }
    return {title: rows for title, rows in told.items() if len(rows) > 1}


def rates(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yields a row for each side of each workload, and for each of the data path."""
    speeds = {(one["workload"], one["precision"], one["side"]): one["speed_by_side"] for one in results["ratios"]}
    for figure in results["figures"] + results["data"]:
        told, workload, precision = figure["rate"], figure["workload"], figure["precision"]
        ratio = speeds.get((workload, precision, "mmsft"), {}).get(figure["side"])
        yield (
            workload,
            precision,
            figure["side"],
            f"{told['median']:.2f}",
            f"{told['least']:.2f} … {told['most']:.2f}",
            figure["unit"],
            f"{figure['peak_gb']['median']:.2f}",
            "" if ratio is None else f"{ratio:.2f}",
        )


def goals(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yields a row for each side of mmsft on each workload."""
    for one in results["ratios"]:
        key = (one["workload"], one["precision"], one["side"])
        memory = "" if one["memory_wanted"] is None else f"≤ {one['memory_wanted']} times"
        least = f"{one['memory']:.2f} times {one['leanest']}"
        yield (*key, f"{one['speed']:.2f} times {one['fastest']}", f"≥ {one['speed_wanted']} times", least, memory)
        for side, wanted in one["speed_wanted_by_side"].items():
            if side in one["speed_by_side"]:
                yield (*key, f"{one['speed_by_side'][side]:.2f} times {side}", f"≥ {wanted} times", "", "")


def losses(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yields a row for each side whose losses were compared."""
    for one in results["agreement"]:
        key = (one["workload"], one["precision"], one["side"], str(len(one["losses"])))
        yield (
            *key,
            f"{one['first_step_apart']:.4f}",
            f"{one['most_apart']:.4f}",
            "yes" if one["same_targets"] else "no",
        )


def markdown(results: dict[str, Any]) -> str:
    """Returns the tables as Markdown."""
    parts = []
    for title, (head, *rows) in tables(results).items():
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        parts.append("\n".join([f"### {title}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def drawn(title: str, rows: Rows) -> Table:
    """Returns a table for the terminal."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows[1:]:
        table.add_row(*row)
    return table
