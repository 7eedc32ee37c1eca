import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.tree import join, shared, threads
from mmsft.types import Encoded, Ints, Media, Placed, Segment, Targets

PICTURES = tuple(Media("image", f"{index}.png") for index in range(2))
# A block is a token or a picture of three slots; few kinds, so that threads often begin alike.
BLOCKS = st.lists(st.sampled_from([1, 2, 3, *PICTURES]), min_size=1, max_size=8)


def chain(blocks: list[int | Media], learned: slice = slice(1, None)) -> Encoded:
    ids: list[int] = []
    media = []
    for block in blocks:
        if isinstance(block, Media):
            media.append(Placed(block, np.arange(len(ids), len(ids) + 3)))
            ids += [0, 0, 0]
        else:
            ids.append(block)
    array = np.array(ids, np.int64)
    at = np.arange(len(ids))[learned]
    at = at[(array[at] != 0) & (at > 0)]
    targets = Targets(at - 1, array[at], np.ones(len(at), np.float32))
    return Encoded("r:1", array, np.arange(len(ids)), (Segment(0, len(ids)),), targets, tuple(media))


def said(encoded: Encoded) -> tuple[list[int], list[tuple[Media, list[int]]]]:
    return encoded.input_ids.tolist(), [(placed.media, placed.slots.tolist()) for placed in encoded.media]


def learned(encoded: Encoded, positions: Ints) -> list[tuple[int, int]]:
    return sorted(zip(positions[encoded.targets.position].tolist(), encoded.targets.token.tolist(), strict=True))


@given(st.lists(BLOCKS, min_size=1, max_size=5))
def test_unrolled_threads_are_those_that_were_joined(blocks: list[list[int | Media]]) -> None:
    chains = [chain(line) for line in blocks]
    tree = join(chains)
    # One that is the beginning of another disappears in it, and of equal ones one is left.
    kept = {str(said(line)) for i, line in enumerate(chains) if not any(_begins(line, other) for other in chains)}
    assert {str(said(thread)) for thread in threads(tree)} == kept


def _begins(one: Encoded, other: Encoded) -> bool:
    return len(one) < len(other) and shared(one, other) == len(one)


@given(st.lists(BLOCKS, min_size=1, max_size=5))
def test_no_target_gets_lost_or_moves(blocks: list[list[int | Media]]) -> None:
    chains = [chain(line) for line in blocks]
    tree = join(chains)
    expected = sorted(pair for line in chains for pair in learned(line, line.positions))
    assert learned(tree, tree.positions) == expected
    assert sorted(pair for thread in threads(tree) for pair in learned(thread, thread.positions)) == expected


@given(st.lists(BLOCKS, min_size=1, max_size=5))
def test_what_threads_share_stands_once(blocks: list[list[int | Media]]) -> None:
    chains = [chain(line) for line in blocks]
    tree = join(chains)
    prefixes = {str(said(chain(line[:length]))) for line in blocks for length in range(1, len(line) + 1)}
    # Each distinct beginning of a thread ends in one token of the tree, or in three slots.
    slots = {key for key in prefixes if key.startswith("([") and _ends_in_slots(key)}
    assert len(tree) == len(prefixes) + 2 * len(slots)


def _ends_in_slots(key: str) -> bool:
    return key[: key.index("]")].rstrip().endswith("0")


@given(st.lists(BLOCKS, min_size=1, max_size=5))
def test_segments_cover_the_tokens_and_parents_come_first(blocks: list[list[int | Media]]) -> None:
    tree = join([chain(line) for line in blocks])
    assert [s.start for s in tree.segments] == [0, *(s.end for s in tree.segments[:-1])]
    assert tree.segments[-1].end == len(tree)
    for index, segment in enumerate(tree.segments):
        assert segment.parent < index
        above = tree.positions[tree.segments[segment.parent].end - 1] if segment.parent >= 0 else -1
        assert tree.positions[segment.start] == above + 1


def test_different_pictures_are_not_shared() -> None:
    assert shared(chain([1, PICTURES[0], 2]), chain([1, PICTURES[1], 2])) == 1
    assert shared(chain([1, PICTURES[0], 2]), chain([1, PICTURES[0], 2])) == 5


def test_a_chain_stays_what_it_is() -> None:
    line = chain([1, 2, 3])
    assert join([line]) is line
