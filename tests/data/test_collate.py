from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from mmsft.adapters import Linear
from mmsft.data.collate import collate
from mmsft.data.media_reader import Loaded, MediaReader
from mmsft.modalities import Clip
from mmsft.types import Encoded, Group, Media, Placed, Segment, Targets
from tests.makers import picture
from tests.model.tiny import clip_folder


def thread(number: int, length: int, slots: dict[Media, list[int]] | None = None) -> Encoded:
    learned = np.array([length - 2], np.int64)
    placed = tuple(Placed(media, np.array(where)) for media, where in (slots or {}).items())
    targets = Targets(learned, np.array([100 + number]), np.array([0.5], np.float32))
    ids = np.arange(length) + 10 * number
    return Encoded(f"a.jsonl:{number}", ids, np.arange(length), (Segment(0, length),), targets, placed, number)


@dataclass(frozen=True)
class Reading(Linear):
    """An adapter that reads what is asked."""

    @property
    def reads_context(self) -> bool:
        return True


@pytest.fixture
def reader(tmp_path: Path) -> MediaReader:
    return MediaReader({"image": (Clip(str(clip_folder(tmp_path / "clip"))), Linear())})


@pytest.mark.parametrize(("side", "at"), [("right", [3, 6]), ("left", [3, 8])])
def test_targets_stay_with_their_tokens_on_either_side(
    reader: MediaReader, side: Literal["left", "right"], at: list[int]
) -> None:
    batch = collate([thread(1, 5), thread(2, 3)], reader, {}, side)
    assert batch.targets.at.tolist() == at
    assert batch.input_ids.flatten()[batch.targets.at].tolist() == [13, 21]
    assert batch.targets.token.tolist() == [101, 102]
    assert batch.targets.source.tolist() == [1, 2]
    assert batch.mask.sum(1).tolist() == [5, 3]
    assert batch.positions[1][batch.mask[1]].tolist() == [0, 1, 2]


def test_of_a_medium_that_is_asked_about_in_two_ways_each_question_is_there_once(
    reader: MediaReader, tmp_path: Path
) -> None:
    red, blue = (Media("image", str(picture(tmp_path / f"{name}.png", name))) for name in ("red", "blue"))
    asked = [(red, (7, 8, 9)), (blue, (7,)), (red, (5,)), (red, (7, 8, 9)), (blue, ())]
    threads = [
        replace(thread(number, 6), media=(Placed(medium, np.arange(1, 5), context),))
        for number, (medium, context) in enumerate(asked)
    ]
    reading = MediaReader({"image": (reader.towers["image"][0], Reading())})
    loaded: Loaded = {medium: reading.load(medium) for medium in (red, blue)}
    media = collate(threads, reading, loaded).media["image"]
    [group] = media.groups
    assert group.keys == (red, blue)
    assert group.tensors["pixels"].shape[0] == 2
    assert group.context is not None
    assert group.context.of.tolist() == [0, 1, 0, 1]
    assert [row[mask].tolist() for row, mask in zip(group.context.ids, group.context.mask, strict=True)] == [
        [7, 8, 9],
        [7],
        [5],
        [],
    ]
    assert [use.index for use in media.uses] == [0, 1, 2, 0, 3]
    assert [group.key(use.index) for use in media.uses] == [red, blue, red, red, blue]
    assert media.tokens.view(5, 4)[:, 0].tolist() == [0, 4, 8, 0, 12]


def test_a_medium_that_appears_twice_is_there_once(reader: MediaReader, tmp_path: Path) -> None:
    red, blue = (Media("image", str(picture(tmp_path / f"{name}.png", name))) for name in ("red", "blue"))
    threads = [
        thread(1, 8, {red: [1, 2, 3, 4]}),
        thread(2, 12, {blue: [1, 2, 3, 4], red: [5, 6, 7, 8]}),
        thread(3, 4),
    ]
    loaded: dict[Media, dict[str, Tensor]] = {medium: reader.load(medium) for medium in (red, blue)}
    media = collate(threads, reader, loaded).media["image"]
    assert [group.keys for group in media.groups] == [(red, blue)]
    assert media.groups[0].tensors["pixels"].shape == (2, 3, 8, 8)
    assert [(use.index, use.count, use.row) for use in media.uses] == [(0, 4, 0), (1, 4, 1), (0, 4, 1)]
    assert media.slots.tolist() == [1, 2, 3, 4, 13, 14, 15, 16, 17, 18, 19, 20]
    assert torch.equal(media.groups[0].tensors["pixels"][1], loaded[blue]["pixels"])


def test_a_batch_counts_its_groups_by_source_and_value_across_rows(reader: MediaReader) -> None:
    rows = [replace(thread(number, 5), values=values) for number, values in [(1, ("a",)), (2, ("a",)), (1, ("b",))]]
    batch = collate([*rows, rows[0]], reader, {})
    assert batch.groups == (Group(1, "a"), Group(2, "a"), Group(1, "b"))
    assert batch.targets.group is not None
    assert batch.targets.group.tolist() == [0, 1, 2, 0]
    plain = collate([thread(1, 5)], reader, {})
    assert (plain.groups, plain.targets.group) == ((), None)
