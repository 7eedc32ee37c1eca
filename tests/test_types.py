"""A conversation is a tree of turns; a batch moves as a whole."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsft.errors import DataError
from mmsft.types import (
    PREVIOUS,
    ROOT,
    Batch,
    BatchTargets,
    Context,
    Conversation,
    Grid,
    Media,
    MediaBatch,
    MediaGroup,
    MediaUse,
    Text,
    Turn,
)


def turn(parent: int = PREVIOUS) -> Turn:
    return Turn("user", (Text("hello"),), parent=parent)


@st.composite
def trees(draw: st.DrawFn) -> Conversation:
    """Draws turns whose parents are any earlier turns, the turn before, or none."""
    count = draw(st.integers(1, 12))
    parents = [draw(st.sampled_from([PREVIOUS, ROOT, *range(index)])) for index in range(count)]
    return Conversation("tree", tuple(turn(parent) for parent in parents))


def test_a_plain_dialogue_is_one_thread() -> None:
    assert Conversation("chain", (turn(), turn(), turn())).threads() == ((0, 1, 2),)


def test_branches_share_their_prefix() -> None:
    conversation = Conversation("tree", (turn(), turn(), turn(0), turn(), turn(ROOT)))
    assert conversation.threads() == ((0, 1), (0, 2, 3), (4,))


@settings(deadline=None)  # a busy machine is no defect
@given(trees())
def test_threads_cover_each_turn_and_end_at_each_leaf_once(conversation: Conversation) -> None:
    threads = conversation.threads()
    leaves = [thread[-1] for thread in threads]
    parents = {conversation.parent(index) for index in range(len(conversation.turns))}
    assert {index for thread in threads for index in thread} == set(range(len(conversation.turns)))
    assert leaves == sorted(set(range(len(conversation.turns))) - parents)
    for thread in threads:
        assert conversation.parent(thread[0]) == ROOT
        assert all(conversation.parent(child) == parent for parent, child in itertools.pairwise(thread))


@pytest.mark.parametrize("parent", [0, 1, 5, -3])
def test_a_parent_that_is_not_an_earlier_turn_is_refused_by_id(parent: int) -> None:
    with pytest.raises(DataError, match=rf"mix\.jsonl:7: turn 0 answers turn {parent}"):
        Conversation("mix.jsonl:7", (turn(parent),))


def test_a_conversation_without_turns_is_refused_by_id() -> None:
    with pytest.raises(DataError, match=r"mix\.jsonl:7: the conversation has no turns"):
        Conversation("mix.jsonl:7", ())


def test_a_turn_tells_its_text_and_its_media_apart() -> None:
    picture = Media("image", "a.png")
    mixed = Turn("user", (Text("a "), picture, Text("b")))
    assert mixed.text == "a b"
    assert mixed.media == (picture,)
    assert str(picture) == "<image: a.png>"
    assert str(Media("image", b"123")) == "<image: 3 bytes>"


def test_a_grid_counts_its_features() -> None:
    assert Grid(2, 3, 4).count == 24


@pytest.mark.parametrize(("side", "shape"), [(1, (2, 7, 5)), (2, (2, 4, 3)), (3, (2, 3, 2)), (9, (2, 1, 1))])
def test_an_averaged_grid_knows_the_one_that_the_encoder_gives(side: int, shape: tuple[int, int, int]) -> None:
    whole = Grid(2, 7, 5)
    small = whole.averaged(side)
    assert (small.t, small.h, small.w) == shape
    assert small.whole == whole.whole == whole


def test_tags_of_a_turn_are_those_of_what_follows_it_and_go_before_the_conversations() -> None:
    ask, answer = Turn("user", (Text("?"),), parent=ROOT, tags=(("wording", "a"),)), Turn("assistant", (Text("!"),))
    other = dataclasses.replace(ask, tags=(("wording", "b"), ("kind", "own")))
    talk = Conversation("r:1", (ask, answer, other, answer), {"kind": "all"})
    paths = talk.threads()
    assert [talk.tags_of(path) for path in paths] == [
        {"kind": "all", "wording": "a"}, {"kind": "own", "wording": "b"},
    ]  # fmt: skip
    chain = talk.chain(paths[1])
    assert chain.tags == {"kind": "own", "wording": "b"}
    assert [turn.text for turn in chain.turns] == ["?", "!"]
    assert chain.threads() == ((0, 1),)


def test_map_reaches_every_tensor_of_a_batch() -> None:
    whole = torch.zeros(1, 2, dtype=torch.int64)
    flat = torch.zeros(1, dtype=torch.int64)
    asked = Context(ids=whole, mask=whole.bool(), of=flat)
    group = MediaGroup({"pixels": torch.zeros(1, 3)}, Grid(1, 1, 1), (Media("image", "a"),), context=asked)
    batch = Batch(
        ids=("row",),
        input_ids=whole,
        positions=whole,
        mask=whole.bool(),
        targets=BatchTargets(flat, flat, flat.float(), flat, flat),
        media={"image": MediaBatch((group,), (MediaUse(0, 0, 1, 0),), flat, flat)},
    )
    seen: list[torch.Tensor] = []

    def move(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor + 1

    moved = batch.map(move)
    assert len(seen) == 3 + len(dataclasses.fields(BatchTargets)) + 3 + len(dataclasses.fields(Context))
    assert (moved.media["image"].slots.item(), moved.media["image"].tokens.item()) == (1, 1)
    assert moved.media["image"].groups[0].tensors["pixels"].sum() == 3
    context = moved.media["image"].groups[0].context
    assert context is not None
    assert (context.ids.sum().item(), context.of.item()) == (2, 1)
    assert moved.ids == batch.ids
