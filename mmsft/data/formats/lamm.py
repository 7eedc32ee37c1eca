"""LAMM's format: a dialogue about a picture or a point cloud."""

from dataclasses import replace

from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.fields import find, require, show, text
from mmsft.errors import DataError
from mmsft.types import Conversation, Media, Record, Turn

_MODALITIES = {"image": "image", "pcl": "points"}


def lamm(record: Record, row: str) -> Conversation:
    """Reads ``{"image": "a.jpg", "conversations": [{"from": "human", "value": "…"}, …], "task_type": "…"}``.

    A point cloud stands under ``pcl``, and is a medium of the modality ``points``. Rows have no tags: the medium comes
    before the first question. The task's type becomes a tag.

    Raises:
        DataError: the row isn't of this form, or has both media, or neither.
    """
    found = {modality: record[name] for name, modality in _MODALITIES.items() if record.get(name)}
    if len(found) != 1:
        raise DataError(
            f"{row}: has {' and '.join(found) or 'neither image nor pcl'}; a row of LAMM has one of the two"
        )
    ((modality, ref),) = found.items()
    if not isinstance(ref, str | bytes):
        raise DataError(f"{row}: {modality} must be a path, got {show(ref)}")
    others = {name: value for name, value in record.items() if name not in _MODALITIES}
    talk = read_dialogue(others, row, require(record, ("conversations",), row))
    turns = with_media(talk.turns, (Media(modality, ref),), row)
    kind = find(record, ("task_type",), row)
    tags = {} if kind is None else {"task_type": text(kind, f"{row}: task_type")}
    return replace(talk, turns=turns, tags=tags)


def with_media(turns: tuple[Turn, ...], media: tuple[Media, ...], row: str) -> tuple[Turn, ...]:
    """Returns the turns with media before what the user says first.

    Raises:
        DataError: no turn is the user's.
    """
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise DataError(f"{row}: no turn is the user's, so that nobody asks about its media; mend the row")
    asked = replace(turns[first], parts=(*media, *turns[first].parts))
    return (*turns[:first], asked, *turns[first + 1 :])
