"""``make bench``: runs each workload in fresh processes, mmsft and its peers in turns, and tells how they compare."""

import json
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, ParamSpec, TypeVar

import typer
from rich.console import Console

from scripts.bench.data_path import FIRST, READERS
from scripts.bench.processes import VENVS, Failed, Ran, python, train
from scripts.bench.results import WARM_UP, Key, agreement, figure, ratios, roofline, spread
from scripts.bench.tables import drawn, markdown, tables
from scripts.bench.workloads import OURS, SIDES, WORKLOADS, Job

TOLD: Final = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "llamafactory")
"""Packages whose versions are told."""

Precision = Literal["bf16", "fp32"]
PRECISIONS: Final[tuple[Precision, ...]] = ("bf16", "fp32")
NAMES: Final = (*WORKLOADS, "D")
ROUNDS: Final = 2
STEPS: Final = 6
COMPARED: Final = 20
DATA: Final = (
    ("images", "images/s", tuple(READERS)),
    ("first", "s to first batch", tuple(FIRST)),
)
"""What D measures: the name in data_path.py, the unit, and the sides."""

P = ParamSpec("P")
T = TypeVar("T")
N = TypeVar("N", bound=str)


@dataclass
class Bench:
    """A benchmark under way.

    Attributes:
        out: the folder of the parts, logs and results.
        jobs: of a round, in turn.
        failed: what ended with an error; all else goes on.
    """

    out: Path
    jobs: Sequence[Job]
    console: Console = field(default_factory=Console)
    failed: list[str] = field(default_factory=list)

    def attempt(self, what: str, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Returns what an act gives, or nothing if it fails."""
        self.console.print(what, style="dim", markup=False)
        try:
            return [act(*args, **kwargs)]
        except Failed as error:
            self.failed.append(f"{what}: {error}")
            self.console.print(str(error), style="red", markup=False)
            return []

    def rounds(self, count: int) -> dict[Key, list[dict[str, Any]]]:
        """Runs all jobs so many times, in turns; those that are measured warm find their store filled."""
        for job in self.jobs:
            if job.store:
                self.attempt(f"filling the store of {job.side}", train, replace(job, purpose="fill"), self.out)
        tracks: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        for number in range(count):
            for job in self.jobs:
                told = f"round {number + 1}/{count}: {job.workload} {job.precision} {job.side}"
                tracks[job.key] += self.attempt(told, train, job, self.out)
        return {key: found for key, found in tracks.items() if found}

    def compared(self, steps: int) -> dict[Key, list[dict[str, Any]]]:
        """Runs each side of each workload once in fp32, with the same rows in each step on all sides."""
        asked = [replace(job, precision="fp32", purpose="agree", steps=steps) for job in self.jobs if steps]
        tracks = {
            key: self.attempt(f"losses of {steps} steps: {job.workload} {job.side}", train, job, self.out)
            for key, job in {job.key: job for job in asked}.items()
        }
        return {key: found for key, found in tracks.items() if found}

    def roofline(
        self, tracks: dict[Key, list[dict[str, Any]]], peaks: dict[str, dict[str, float]]
    ) -> dict[str, list[float]]:
        """Counts the FLOPs of mmsft on T1 apart from what is timed; returns the part of the peak, by precision."""
        parts: dict[str, list[float]] = {}
        for job in self.jobs:
            if (job.workload, job.side) == ("T1", OURS) and (timed := tracks.get(job.key)):
                peak = max(peaks[job.precision].values())
                for counted in self.attempt(
                    f"FLOPs: T1 {job.precision}", train, replace(job, purpose="flops"), self.out
                ):
                    parts[job.precision] = [roofline(track, counted, peak) for track in timed]
        return parts

    def data(self, rounds: int) -> list[dict[str, Any]]:
        """Measures the data path."""
        from scripts.bench.data_path import make_data

        folder = self.out / "data"
        make_data(folder)
        found: dict[tuple[str, str, str], list[Ran]] = defaultdict(list)
        for number in range(rounds):
            for what, unit, side in [(what, unit, side) for what, unit, sides in DATA for side in sides]:
                arguments = ["-m", "scripts.bench.data_path", what, side, str(folder)]
                log = self.out / "logs" / f"D-{what}-{side.replace(' ', '_')}.log"
                told = f"round {number + 1}/{rounds}: D {what} {side}"
                found[what, unit, side] += self.attempt(told, python, OURS if side == OURS else "peers", arguments, log)
        return [
            {
                "workload": "D",
                "precision": "",
                "what": what,
                "side": side,
                "unit": unit,
                "rate": spread([float(ran.printed.split()[-1]) for ran in all_of]),
                "peak_gb": spread([ran.peak_gb for ran in all_of]),
            }
            for (what, unit, side), all_of in found.items()
            if all_of
        ]


def main(
    only: Annotated[str, typer.Option(help=f"workloads, with commas between: {','.join(NAMES)}")] = "",
    sides: Annotated[str, typer.Option(help=f"sides, with semicolons between: {';'.join(SIDES)}")] = "",
    precisions: Annotated[str, typer.Option(help="bf16,fp32; by default both for T1, else bf16")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = ROUNDS,
    steps: Annotated[int, typer.Option(min=WARM_UP + 1, help=f"the first {WARM_UP} aren't timed")] = STEPS,
    compared: Annotated[int, typer.Option(min=0, help="steps whose losses are compared, in fp32")] = COMPARED,
    out: Annotated[Path, typer.Option(help="for results, and the parts that all sides load")] = Path("runs/bench"),
) -> None:
    """Measures mmsft beside its peers."""
    out = out.absolute()
    workloads = chosen(only.split(","), NAMES)
    asked = chosen(precisions.split(","), PRECISIONS) if precisions else []
    jobs = plan(workloads, chosen(sides.split(";"), tuple(SIDES)), asked, steps, out)
    refuse_missing({SIDES[job.side].venv for job in jobs} | ({"peers"} if "D" in workloads else set()))
    whole = not (sides or precisions) and (rounds, steps, compared) == (ROUNDS, STEPS, COMPARED)
    from mmsft.noise import quiet_libraries
    from scripts.bench.parts import make_parts

    quiet_libraries()
    make_parts(out / "parts")
    bench = Bench(out, jobs)
    peaks = json.loads(python(OURS, ["-m", "scripts.bench.matmul"], out / "logs" / "matmul.log").printed)
    tracks = bench.rounds(rounds)
    figures = [figure(key, found) for key, found in tracks.items()]
    results = {
        **circumstances(jobs),
        "whole": whole,
        "rounds": rounds,
        "steps": steps,
        "matmul_gflops": peaks,
        "figures": figures,
        "ratios": ratios(figures),
        "roofline": bench.roofline(tracks, peaks),
        "agreement": agreement(bench.compared(compared)),
        "data": bench.data(rounds) if "D" in workloads else [],
        "failed": bench.failed,
    }
    write(results, out / f"{named(workloads, whole)}.json", bench.console)
    raise typer.Exit(1 if bench.failed else 0)


def named(workloads: Sequence[str], whole: bool) -> str:
    """Returns the name of the results: workloads may be measured one by one, and what is cut short overwrites none."""
    if not whole:
        return "results-part"
    return "results" if len(workloads) == len(NAMES) else f"results-{'-'.join(workloads)}"


def chosen(names: Sequence[str], known: Collection[N]) -> list[N]:
    """Returns those of the known names that are asked for, all if none is.

    Raises:
        typer.BadParameter: a name isn't known.
    """
    asked = [name.strip() for name in names if name.strip()]
    if unknown := [name for name in asked if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(known)}")
    return [name for name in known if name in asked or not asked]


def plan(
    workloads: Sequence[str], sides: Sequence[str], precisions: Sequence[Precision], steps: int, out: Path
) -> list[Job]:
    """Returns the processes of a round, in turn."""
    return [
        Job(
            name,
            side,
            precision,
            steps,
            str(out / "parts"),
            store=str(out / "store") if "warm" in SIDES[side].settings else "",
        )
        for name in workloads
        if name in WORKLOADS
        for precision in precisions or (PRECISIONS if name == "T1" else PRECISIONS[:1])
        for side in WORKLOADS[name].sides
        if side in sides
    ]


def refuse_missing(venvs: set[str]) -> None:
    """Says which environment isn't there, and what makes it."""
    for name in sorted(name for name in venvs - {OURS} if not VENVS[name].joinpath(".installed").exists()):
        typer.echo(
            f"the peers' environment {VENVS[name]} isn't installed: run `make bench`, "
            f"or measure mmsft alone with `--sides {OURS}`",
            err=True,
        )
        raise typer.Exit(2)


def circumstances(jobs: Sequence[Job]) -> dict[str, Any]:
    """Returns when, where and with which versions this is measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": {"processors": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "versions": {name: versions(name) for name in sorted({SIDES[job.side].venv for job in jobs})},
    }


def versions(venv: str) -> dict[str, str]:
    """Returns the versions of what counts in an environment."""
    if venv == OURS:
        return {name: version(name) for name in ("torch", "transformers", "mmsft")}
    found = VENVS[venv].joinpath(".installed").read_text(encoding="utf-8").split()
    return {name: number for name, _, number in (line.partition("==") for line in found) if name in TOLD}


def write(results: dict[str, Any], file: Path, console: Console) -> None:
    """Writes results as JSON, and as tables beside it and on the terminal."""
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    for title, rows in tables(results).items():
        console.print(drawn(title, rows))
    console.print(f"written to {file}", markup=False)


if __name__ == "__main__":
    typer.run(main)
