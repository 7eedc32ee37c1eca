"""How much a score depends on how a task is worded: MultiInstruct's sensitivity (Xu et al. 2023)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from mmsft.data.wordings import WORDING
from mmsft.eval.accuracy import Answer
from mmsft.types import Conversation


@dataclass(frozen=True, slots=True)
class Wordings:
    """The scores of a task by its wordings.

    Attributes:
        scores: by the wording's name.
    """

    scores: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over the wordings, each counting once."""
        return fmean(self.scores.values())

    @property
    def deviation(self) -> float:
        """Standard deviation; the wordings are all there are, so that squares are divided by their number."""
        return pstdev(self.scores.values())

    @property
    def sensitivity(self) -> float:
        """Deviation ÷ mean; NaN where all scores are 0, of which nothing can be said."""
        return self.deviation / self.mean if self.mean else math.nan


def sensitivity(tasks: Mapping[str, Mapping[str, float]]) -> float | None:
    """Returns the mean over tasks of σ ÷ μ of the scores of their wordings: 0 = how it is asked doesn't matter.

    Tasks with one wording, or with no score above 0, say nothing and don't count.

    Args:
        tasks: by task and wording, scores from 0 up.

    Returns:
        None if no task says anything.
    """
    each = [Wordings(scores).sensitivity for scores in tasks.values() if len(scores) > 1]
    told = [value for value in each if not math.isnan(value)]
    return fmean(told) if told else None


def by_wording(
    rows: Sequence[Conversation], answers: Sequence[Answer], tasks: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns the part of right answers by task and wording; rows without the tag `WORDING` don't count.

    Args:
        rows: what was asked.
        answers: to each.
        tasks: of each, e.g. its source.
    """
    right: dict[str, dict[str, list[bool]]] = {}
    for row, answer, task in zip(rows, answers, tasks, strict=True):
        if WORDING in row.tags:
            right.setdefault(task, {}).setdefault(row.tags[WORDING], []).append(answer.correct)
    return {task: {name: fmean(each) for name, each in sorted(names.items())} for task, names in sorted(right.items())}


def told(tasks: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yields for a terminal the mean, spread and best score of each task that has several wordings, and sensitivity."""
    for task, scores in tasks.items():
        if len(scores) > 1:
            of = Wordings(scores)
            yield (
                f"  {task} in {len(scores)} wordings: {of.mean:.1%} on average, {max(scores.values()):.1%} at most, "
                f"standard deviation {of.deviation:.1%}"
            )
    value = sensitivity(tasks)
    if value is not None:
        yield f"sensitivity {value:.3f} (standard deviation ÷ mean over wordings, averaged over tasks; less is better)"
