import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsft.data.collate import collate
from mmsft.data.media_reader import MediaReader
from mmsft.data.tree import divide, join, shared, threads
from mmsft.types import Encoded, Ints, Media
from tests.data.chains import chain
from tests.makers import Lab, picture, row, write_rows

PICTURES = tuple(Media("image", f"{index}.png") for index in range(2))
# A block is a token or a picture of three slots; few kinds, so that threads often begin alike.
BLOCKS = st.lists(st.sampled_from([1, 2, 3, *PICTURES]), min_size=1, max_size=8)


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


@given(st.lists(st.tuples(BLOCKS, st.sampled_from("abc")), min_size=1, max_size=5), st.booleans())
def test_each_target_of_a_tree_keeps_the_value_of_its_thread(
    lines: list[tuple[list[int | Media], str]], again: bool
) -> None:
    chains = [replace(chain(blocks), values=(value,)) for blocks, value in lines]
    tree = join(chains)
    if again:
        tree = join([tree] if len(threads(tree)) == 1 else threads(tree))
    told = Counter(tree.values[group] for group in tree.targets.group.tolist())
    assert told == sum(
        (Counter({value: len(one.targets)}) for one, (_, value) in zip(chains, lines, strict=True)), Counter()
    )
    assert set(tree.values) == {value for _, value in lines}


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


ASKED = st.lists(st.tuples(BLOCKS, st.sampled_from([(), (1,), (1, 2)])), min_size=1, max_size=6)
"""Threads, and what their pictures' adapter reads."""


def asking(lines: Sequence[tuple[list[int | Media], tuple[int, ...]]]) -> list[Encoded]:
    return [chain(line, asked=asked) for line, asked in lines]


def said_and_asked(encoded: Encoded) -> str:
    return str((said(encoded), [placed.context for placed in encoded.media]))


@given(ASKED)
def test_of_media_whose_adapter_reads_the_question_those_with_one_question_are_shared(
    lines: list[tuple[list[int | Media], tuple[int, ...]]],
) -> None:
    chains = asking(lines)
    tree = join(chains)
    kept = {said_and_asked(line) for line in chains if not any(_begins(line, other) for other in chains)}
    assert {said_and_asked(thread) for thread in threads(tree)} == kept
    starts = {
        str((line[: at + 1], asked))
        for line, asked in lines
        for at, block in enumerate(line)
        if isinstance(block, Media)
    }
    # Where nothing is asked before a picture, threads of other questions share what comes before it.
    assert len(tree.media) == len(starts)


def test_a_medium_stands_below_the_branch_point_if_other_things_are_asked_about_it() -> None:
    line: list[int | Media] = [1, 2, PICTURES[0], 3]
    one, same, other = (chain([*line, 4 + n], asked=asked) for n, asked in enumerate([(7, 8), (7, 8), (7, 9)]))
    assert shared(one, same) == 6
    assert shared(one, other) == 2
    assert [(s.start, s.end, s.parent) for s in join([one, same, other]).segments] == [
        (0, 2, -1),
        (2, 6, 0),
        (6, 7, 1),
        (7, 8, 1),
        (8, 13, 0),
    ]


@given(ASKED, st.integers(1, 30))
def test_parts_of_a_divided_tree_hold_its_threads_and_targets_and_are_no_larger(
    lines: list[tuple[list[int | Media], tuple[int, ...]]], most: int
) -> None:
    tree = join(asking(lines))
    parts = divide(tree, most)
    together = [thread for part in parts for thread in part]
    assert list(map(said_and_asked, together)) == list(map(said_and_asked, threads(tree)))
    assert sorted(pair for thread in together for pair in learned(thread, thread.positions)) == learned(
        tree, tree.positions
    )
    for part in parts:
        assert len(part) == 1 or len(join(part)) <= most


def test_a_tree_is_called_by_the_rows_in_it() -> None:
    tree = join([chain([1, 2], name="a:1"), chain([1, 3], name="a:2"), chain([1, 4], name="a:1")])
    assert tree.id == "a:1, a:2"
    assert tree.ids == ("a:1", "a:2")


def test_a_trees_name_quotes_few_of_many_rows_and_none_gets_lost() -> None:
    names = [f"a:{number}" for number in range(64)]
    tree = join([chain([1, 2 + number], name=name) for number, name in enumerate(names)])
    assert tree.id == "a:0, a:1, a:2 and 61 more"
    assert list(tree.ids) == names
    # A divided tree's parts name their rows as they were.
    assert join(threads(tree)[:2]).ids == tree.ids
    batch = collate([tree, chain([5, 6], name="b:1")], MediaReader({}), {})
    assert batch.ids == (tree.id, "b:1")
    assert batch.rows == (*names, "b:1")


def test_a_tree_of_thousands_of_threads_is_taken_apart_in_no_time() -> None:
    lines = [chain([1, 2 + number % 7, 10 + number, 5, 6]) for number in range(6000)]
    began = time.process_time()
    tree = join(lines)
    taken = threads(tree)
    # 0.4 s where it grows with the threads; with their square more than 20.
    assert time.process_time() - began < 4
    assert sorted(map(str, map(said, taken))) == sorted(map(str, map(said, lines)))


def test_pictures_of_one_name_and_other_bytes_are_not_shared(tmp_path: Path) -> None:
    lab = Lab.make(tmp_path, rows=3)
    sources = []
    for colour in ("red", "blue"):
        picture(tmp_path / colour / "same.png", colour)
        write_rows(tmp_path / f"{colour}.jsonl", [row(1, "same.png"), row(1, "same.png")])
        sources.append(
            {"path": str(tmp_path / f"{colour}.jsonl"), "format": "llava", "media_root": str(tmp_path / colour)}
        )
    recipe = lab.recipe() | {"sources": sources, "join": "shared_prefix"}
    run = lab.run("out", [lab.stage(recipe=recipe, batch="4 examples", micro_batch="600 tokens")])
    stage = run.config.stages[0]
    mixture, encoding = run.mixture(stage.recipe), run.encoding(stage)
    rows, loaded, lost = encoding.read(mixture, mixture.train)
    assert not lost
    trees = encoding.joined(list(rows.values()), [0] * 4)  # as if they stood together
    assert [len(tree.media) for tree in trees] == [2]
    [batch] = encoding.batches(trees, loaded)
    pixels = batch.media["image"].groups[0].tensors["pixels"]
    assert len(pixels) == 2
    assert not pixels[0].equal(pixels[1])


@pytest.mark.parametrize("same", [True, False])
def test_pictures_in_rows_are_told_apart_by_their_bytes(same: bool) -> None:
    lines = [chain([1, Media("image", data), 2]) for data in (b"one picture", b"one picture" if same else b"another")]
    assert len(join(lines).media) == (1 if same else 2)
