"""What a recipe's rules for its rows come to on the first of them: its quarantine, smaller media, losses by a tag."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from mmsft.config import StageConfig
from mmsft.errors import DataError, suggest
from mmsft.run.load import Run
from mmsft.types import Conversation, Ints


def rules(run: Run, stage: StageConfig, pairs: Ints) -> Iterator[tuple[str, str]]:
    """Yields (``facts``, ``notes`` or ``problems``, text).

    Args:
        run: of which the stage is one.
        stage: whose recipe it is.
        pairs: [n, 2] (source, row), the first rows in training order.
    """
    mixture, recipe = run.mixture(stage.recipe), stage.recipe
    talks: list[Conversation] = []
    if recipe.too_long == "shrink" or recipe.loss_by is not None:
        for pair in pairs:
            with suppress(DataError):  # told with the rows
                talks.append(mixture.conversation(pair))
    if recipe.quarantine is not None:
        known = len(run.encoding(stage).known)
        what = "are as they were, and aren't read; if it names others, these have changed, or are read otherwise"
        yield "facts", f"stage {stage.name}: quarantine: {known:,} rows that it names {what}, and are read again"
    found = [*_shrinking(run, talks)] if recipe.too_long == "shrink" else []
    found += _grouping(recipe.loss_by, talks) if recipe.loss_by is not None else []
    yield from ((kind, f"stage {stage.name}: {text}") for kind, text in found)


def _shrinking(run: Run, talks: Sequence[Conversation]) -> Iterator[tuple[str, str]]:
    able: dict[str, bool] = {}
    for medium in dict.fromkeys(medium for talk in talks for turn in talk.turns for medium in turn.media):
        if not able.get(medium.modality):
            with suppress(DataError):
                able[medium.modality] = len(run.reader.readings(medium)) > 1
    fixed = [name for name, can in able.items() if not can]
    if not run.config.model.towers:
        yield "problems", "too_long: shrink reads media smaller, and the model has no tower; write drop, trim or error"
    elif fixed and len(fixed) == len(able):
        what = f"no {' or '.join(fixed)} medium can be read to fewer tokens, so that rows that are too long are dropped"
        way = "write drop, trim or error, or take an adapter whose tokens follow the features"
        yield "problems", f"too_long: shrink, and {what}; {way}"
    elif fixed:
        yield "notes", f"too_long: shrink, and {' and '.join(fixed)} media can't be read to fewer tokens"


def _grouping(tag: str, talks: Sequence[Conversation]) -> Iterator[tuple[str, str]]:
    tags = [talk.tags_of(path) for talk in talks for path in talk.threads()]
    if tags and not any(tag in each for each in tags):
        known = dict.fromkeys(name for each in tags for name in each)
        what = f"none of the first {len(talks)} rows has the tag {tag!r}{suggest(tag, known)}"
        way = f"they have {', '.join(known) or 'none'}: templates give `wording`, and a source's `tags` names columns"
        yield "problems", f"loss_by: {what}; {way}"
