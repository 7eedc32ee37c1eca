"""Trees of a pack that begin alike share what they begin with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data import prefix
from mmsft.data.collate import pack
from mmsft.data.media_reader import MediaReader
from mmsft.data.prefix import LEAST, Prefix, lay_out, prefixes
from mmsft.data.tree import join
from mmsft.types import Encoded, Media
from tests.data.chains import chain
from tests.model.forests import paths

SYSTEM = list(range(1, 21))
THREAD = st.lists(st.integers(1, 3), min_size=2, max_size=8)
TREES = st.lists(st.lists(THREAD, min_size=1, max_size=3).map(lambda said: join([chain(one) for one in said])),
                 min_size=1, max_size=6)  # fmt: skip


def read_back(trees: list[Encoded]) -> None:
    """Finds each tree again where it was laid: its tokens, and for each token the thread that leads to it."""
    places, segments = lay_out(trees)
    ids = np.full(segments[-1].end, -1)
    for tree, place in zip(trees, places, strict=True):
        ids[place] = tree.input_ids
    assert (ids >= 0).all()
    seen = paths(segments)
    for tree, place in zip(trees, places, strict=True):
        for token, thread in enumerate(paths(tree.segments)):
            assert seen[place[token]] == place[thread].tolist()
            assert len(thread) == tree.positions[token] + 1
    assert all(segment.parent < index for index, segment in enumerate(segments))
    assert [segment.start for segment in segments] == [0, *(segment.end for segment in segments[:-1])]


@given(TREES, st.integers(1, 4))
def test_each_token_sees_its_own_thread(trees: list[Encoded], least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "LEAST", least)
        read_back(trees)


def test_a_system_message_stands_once() -> None:
    trees = [chain([*SYSTEM, answer, 40]) for answer in (30, 31, 32)]
    assert prefixes(trees) == [Prefix(0, 20)] * 3
    batch = pack(trees, MediaReader({}), {})
    assert batch.input_ids.tolist() == [[*SYSTEM, 30, 40, 31, 40, 32, 40]]
    assert batch.positions.tolist() == [[*range(20), 20, 21, 20, 21, 20, 21]]
    # Each row learns its own; of what they share, the three learn the same.
    assert batch.targets.at.tolist() == [*range(20), 20, *range(20), 22, *range(20), 24]
    assert batch.targets.token.tolist() == [token for tree in trees for token in tree.targets.token.tolist()]
    read_back(trees)


def test_rows_that_share_stand_together_whatever_is_between_them() -> None:
    other = [50 + number for number in range(18)]
    trees = [chain([*SYSTEM, 30]), chain([99, 98]), chain([*other, 30]), chain([*SYSTEM, 31]), chain([*other, 31])]
    assert [begin.tokens for begin in prefixes(trees)] == [20, 0, 18, 20, 18]
    assert lay_out(trees).segments[-1].end == 22 + 2 + 20
    read_back(trees)


def test_what_is_short_is_not_shared() -> None:
    assert prefixes([chain([*SYSTEM[: LEAST - 1], 30]), chain([*SYSTEM[: LEAST - 1], 31])]) == [Prefix(-1, 0)] * 2


def test_equal_rows_share_all_but_a_token() -> None:
    trees = [chain(SYSTEM), chain(SYSTEM)]
    assert prefixes(trees) == [Prefix(0, 19)] * 2
    read_back(trees)


def test_a_medium_ends_what_is_shared() -> None:
    picture = Media("image", "a.png")
    trees = [chain([*SYSTEM[:17], picture, answer]) for answer in (30, 31)]
    assert prefixes(trees) == [Prefix(0, 17)] * 2
    read_back(trees)


def test_a_row_of_several_roots_shares_nothing() -> None:
    forest = join([chain([*SYSTEM, 30]), chain([9, 9])])
    assert prefixes([forest, chain([*SYSTEM, 31])]) == [Prefix(-1, 0)] * 2
    read_back([forest, chain([*SYSTEM, 31])])
