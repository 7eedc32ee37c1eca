"""What the runs amount to: figures with their spread, ratios to the best peer, and how far the losses agree."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from scripts.bench.workloads import ASKED, OURS, WORKLOADS

WARM_UP = 2
"""Steps at the start of a process that aren't timed."""

Key = tuple[str, str, str]
"""Workload, precision and side."""

Tracks = Mapping[Key, Sequence[dict[str, Any]]]


def figure(key: Key, tracks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one side's rounds on one workload."""
    workload, precision, side = key
    rates = [rate(workload, track) for track in tracks]
    return {
        "workload": workload,
        "precision": precision,
        "side": side,
        "unit": WORKLOADS[workload].unit,
        "rate": spread(rates),
        "peak_gb": spread([track["peak_gb"] for track in tracks]),
        "learning": tracks[0]["learning"],
        "targets": tracks[0]["targets"],
        "losses": tracks[0]["losses"],
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns median, least and most beside the values."""
    return {"median": median(values), "least": min(values), "most": max(values), "rounds": list(values)}


def rate(workload: str, track: Mapping[str, Any]) -> float:
    """Returns tokens of rows a second, or questions where there are pictures, after the first steps."""
    counts, ends = track["tokens"], track["ends"]
    done = ASKED * (len(ends) - WARM_UP) if WORKLOADS[workload].pictures else sum(counts[WARM_UP:])
    return float(done / (ends[-1] - ends[WARM_UP - 1]))


def ratios(figures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, for each side of mmsft on each workload and precision, how its medians compare with the peers'."""
    found = []
    for figure in figures:
        workload = WORKLOADS[figure["workload"]]
        goal = workload.goals.get(figure["side"])
        alike = [one for one in figures if all(one[key] == figure[key] for key in ("workload", "precision"))]
        peers = {one["side"]: one for one in alike if one["side"] in workload.peers}
        if goal is None or not peers:
            continue
        speed = {side: figure["rate"]["median"] / one["rate"]["median"] for side, one in peers.items()}
        memory = {side: figure["peak_gb"]["median"] / one["peak_gb"]["median"] for side, one in peers.items()}
        fastest, leanest = min(speed, key=speed.__getitem__), max(memory, key=memory.__getitem__)
        found.append(
            {
                **{key: figure[key] for key in ("workload", "precision", "side")},
                "fastest": fastest,
                "speed": speed[fastest],
                "speed_wanted": goal.speed,
                "leanest": leanest,
                "memory": memory[leanest],
                "memory_wanted": goal.memory,
                "speed_by_side": speed,
                "speed_wanted_by_side": dict(goal.over),
                "memory_by_side": memory,
            }
        )
    return found


def agreement(tracks: Tracks) -> list[dict[str, Any]]:
    """Returns how far each side's losses are from mmsft's, on the same rows in the same steps."""
    found = []
    for (workload, precision, side), (track, *_) in tracks.items():
        if (ours := tracks.get((workload, precision, OURS))) is None:
            continue
        apart = [abs(a - b) for a, b in zip(track["losses"], ours[0]["losses"], strict=True)]
        found.append(
            {
                "workload": workload,
                "precision": precision,
                "side": side,
                "losses": track["losses"],
                "targets": track["targets"],
                "learning": track["learning"],
                "same_targets": track["targets"] == ours[0]["targets"],
                "first_step_apart": apart[0],
                "most_apart": max(apart),
            }
        )
    return found


def roofline(track: dict[str, Any], counted: dict[str, Any], peak_gflops: float) -> float:
    """Returns the part of the matmul peak that a timed run reaches, by the FLOPs that another run of it counted."""
    done = counted["flops"][-1] - counted["flops"][WARM_UP - 1]
    return float(done / (track["ends"][-1] - track["ends"][WARM_UP - 1]) / (peak_gflops * 1e9))
