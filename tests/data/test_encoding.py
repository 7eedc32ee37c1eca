from collections import Counter
from dataclasses import replace
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsft.data.encoding import Encoding, Share, Work
from mmsft.data.mixture import Mixture
from mmsft.objectives import sft
from mmsft.run import Run, load_run
from tests.makers import COLOURS, Lab, row, write_rows

SOLO = Share()


def asked(number: int, colour: str, more: str = "") -> dict[str, Any]:
    return row(number, f"images/{colour}.png") | {
        "conversations": [
            {"from": "human", "value": f"<image>\nQuestion {number}{more}?"},
            {"from": "gpt", "value": f"answer {number}"},
        ]
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four questions on each of two pictures, in turns, and two questions without one."""
    lab = Lab.make(tmp_path)
    rows = [asked(number, COLOURS[number % 2]) for number in range(8)] + [row(8), row(9)]
    write_rows(tmp_path / "asked.jsonl", rows)
    return lab.run("a", [lab.stage(recipe=lab.recipe("asked.jsonl", join="shared_prefix"), batch="5 examples")])


def parts(run: Run, micro_tokens: int = 1000, packs: bool = True) -> tuple[Mixture, Encoding]:
    stage = run.config.stages[0]
    encoding = Encoding(run.encoder(stage.recipe), run.reader, micro_tokens, packs)
    return run.mixture(stage.recipe), encoding


def work(run: Run, share: Share = SOLO, micro_tokens: int = 1000, packs: bool = True) -> Work:
    """Does all rows, those of one group behind one another."""
    mixture, encoding = parts(run, micro_tokens, packs)
    assert mixture.groups is not None
    order = np.argsort(mixture.groups, kind="stable")
    return encoding.work(mixture, mixture.train[order], mixture.groups[order].tolist(), share)


def apart(run: Run) -> Work:
    mixture, encoding = parts(run)
    return encoding.work(mixture, mixture.train, range(len(mixture.train)), SOLO)


def learned(works: list[Work]) -> Counter[int]:
    return Counter(token for done in works for micro in done.micro for token in micro.targets.token.tolist())


def contexts(works: list[Work]) -> list[tuple[list[int], int]]:
    """Returns each target with what its position sees: the ids before it in its thread."""
    found = []
    for micro in (micro for done in works for micro in done.micro):
        ids = micro.input_ids.flatten()
        tokens = torch.arange(len(ids))
        for at, token in zip(micro.targets.at.tolist(), micro.targets.token.tolist(), strict=True):
            seen = tokens >= at - at % micro.input_ids.shape[1] if micro.pack is None else micro.pack.until > at
            found.append((ids[seen & (tokens <= at)].tolist(), token))
    return sorted(found)


def test_questions_on_one_picture_read_it_once(run: Run) -> None:
    joined, alone = work(run), apart(run)
    assert (joined.used, alone.used) == (10, 10)
    assert joined.tokens + joined.spared == alone.tokens
    assert joined.spared > alone.tokens / 4
    [batch] = joined.micro
    assert batch.pack
    assert sum(segment.parent < 0 for segment in batch.pack.segments) == 4
    assert len(batch.media["image"].uses) == 2
    assert learned([joined]) == learned([alone])


def test_a_joined_step_has_the_loss_and_gradient_of_its_rows(run: Run) -> None:
    model = run.model().eval()
    found = []
    for done in (work(run), apart(run), work(run, packs=False)):
        model.zero_grad()
        losses = [sft(model, micro, 1) for micro in done.micro]
        loss = torch.stack([loss.sum for loss in losses]).sum() / torch.stack([loss.count for loss in losses]).sum()
        loss.backward()
        gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradient))
    # fp32: the same products, added in another order
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], atol=0, rtol=1e-6)
        for name, value in gradient.items():
            torch.testing.assert_close(value, found[0][1][name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_shares_make_the_whole_and_none_is_idle_while_another_has_a_tree_to_divide(run: Run, ranks: int) -> None:
    shares = [work(run, Share(rank, ranks)) for rank in range(ranks)]
    whole = work(run)
    assert learned(shares) == learned([whole])
    assert sum(done.used for done in shares) == whole.used
    assert sum(done.tokens + done.spared for done in shares) == whole.tokens + whole.spared
    assert all(done.used for done in shares)
    assert len({len(done.micro) for done in shares}) == 1


def test_a_tree_that_a_micro_batch_can_not_hold_is_divided(run: Run) -> None:
    whole, divided = work(run), work(run, micro_tokens=100)
    assert all(batch.input_ids.numel() <= 100 for batch in divided.micro)
    assert whole.tokens < divided.tokens <= divided.tokens + divided.spared == whole.tokens + whole.spared
    assert (divided.used, learned([divided])) == (10, learned([whole]))


def test_one_row_of_many_threads_is_divided_too_and_counted_once(tmp_path: Path) -> None:
    lab = Lab.make(tmp_path)
    package = tmp_path / "forked.py"
    package.write_text(
        "from mmsft.types import Conversation, Text, Turn\n"
        "def forked(record, row):\n"
        "    ask = Turn('user', (Text('Name a number, any number that you like'),))\n"
        "    answers = (Turn('assistant', (Text(f'number {n}'),), parent=0) for n in range(record['answers']))\n"
        "    return Conversation(row, (ask, *answers))\n",
        encoding="utf-8",
    )
    write_rows(tmp_path / "forked.jsonl", [{"answers": 12}, {"answers": 2}])
    recipe = lab.recipe("forked.jsonl")
    recipe["sources"][0]["format"] = "forked:forked"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        run = lab.run("a", [lab.stage(recipe=recipe)])
        mixture, encoding = parts(run, 150)
        shares = [encoding.work(mixture, mixture.train, [0, 1], Share(rank, 3)) for rank in range(3)]
    assert [batch for done in shares for batch in done.micro if batch.input_ids.numel() > 150] == []
    assert sum(done.used for done in shares) == 2
    numbers = [f"number {n}" for n in (*range(12), 0, 1)]
    assert sum(learned(shares).values()) == sum(len(encoding.encoder.tokenizer.reply(text)) + 1 for text in numbers)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("packs", [True, False])
def test_a_broken_picture_loses_its_rows_once_and_no_other(run: Run, packs: bool, ranks: int) -> None:
    folder = run.folder.parent
    (folder / "images" / f"{COLOURS[0]}.png").write_bytes(b"no picture")
    shares = [work(run, Share(rank, ranks), packs=packs) for rank in range(ranks)]
    lost = sorted(entry.row for done in shares for entry in done.entries)
    assert lost == [f"asked.jsonl:{number}" for number in (1, 3, 5, 7)]
    assert sum(done.used for done in shares) == 6
    # As a step of the good rows alone learns.
    file = folder / "asked.jsonl"
    good = [line for number, line in enumerate(file.read_bytes().splitlines(True)) if number not in (0, 2, 4, 6)]
    file.write_bytes(b"".join(good))
    again = load_run(folder / "a.yaml")
    alone = [work(again, Share(rank, ranks), packs=packs) for rank in range(ranks)]
    assert [entry for done in alone for entry in done.entries] == []
    assert sum(done.used for done in alone) == 6
    assert sum(learned(shares).values()) == sum(learned(alone).values()) > 0
    assert contexts(shares) == contexts(alone)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("packs", [True, False])
def test_a_row_whose_second_picture_is_broken_takes_none_along_that_begins_alike(
    tmp_path: Path, packs: bool, ranks: int
) -> None:
    lab = Lab.make(tmp_path)
    images = [f"images/{COLOURS[number]}.png" for number in range(2)]
    said = [[f"<image>What is {number}?", f"it is {number}"] for number in range(5)]
    said[2] += ["<image>And this?", "that"]
    rows = [
        {
            "messages": [
                {"role": role, "content": text} for role, text in zip(cycle(["user", "assistant"]), texts, strict=False)
            ],
            "images": images[: len(texts) // 2],
        }
        for texts in said
    ]
    # Its header is whole, so that only who loads it knows.
    whole = (tmp_path / images[1]).read_bytes()
    (tmp_path / images[1]).write_bytes(whole[:50])
    found = {}
    for name, kept in (("five", rows), ("four", [*rows[:2], *rows[3:]])):
        write_rows(tmp_path / f"{name}.jsonl", kept)
        recipe = lab.recipe(f"{name}.jsonl", join="shared_prefix")
        recipe["sources"][0] |= {"format": "messages", "tags": []}
        run = lab.run(name, [lab.stage(recipe=recipe)])
        found[name] = [work(run, Share(rank, ranks), packs=packs) for rank in range(ranks)]
    [lost] = [entry for done in found["five"] for entry in done.entries]
    assert (lost.row, lost.fate) == ("five.jsonl:3", "failed")
    assert f"{COLOURS[1]}.png" in lost.reason
    # Two processes may divide so small a step row by row.
    assert sum(done.spared for done in found["five"]) > 0 or not packs or ranks > 1
    assert sum(done.used for done in found["five"]) == 4
    assert contexts(found["five"]) == contexts(found["four"])


def test_a_row_that_can_not_be_encoded_is_booked_by_one_rank(run: Run) -> None:
    file = run.folder.parent / "asked.jsonl"
    file.write_bytes(file.read_bytes().replace(b"Question 3", b"Question" + b"?" * 200))
    shares = [work(run, Share(rank, 3)) for rank in range(3)]
    assert [(entry.row, entry.fate) for done in shares for entry in done.entries] == [("asked.jsonl:4", "dropped")]
    assert sum(done.used for done in shares) == 9


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_threads_are_padded_among_their_like_whatever_the_ranks(run: Run, ranks: int) -> None:
    shares = [work(run, Share(rank, ranks), micro_tokens=150, packs=False) for rank in range(ranks)]
    micro = [batch for done in shares for batch in done.micro]
    assert all(batch.input_ids.numel() <= 150 for batch in micro)
    widths = sorted((int(batch.mask.sum(1).min()), batch.input_ids.shape[1]) for batch in micro)
    # Sorted by length and cut: no batch has a thread that is longer than one of the next batch.
    assert all(widest <= least for (_, widest), (least, _) in pairwise(widths))
    assert contexts(shares) == contexts([work(run, packs=False)])
    loads = [sum(batch.input_ids.numel() for batch in done.micro) for done in shares]
    # Ten threads can't be shared out more evenly than by one batch.
    assert max(loads) - min(loads) <= max(batch.input_ids.numel() for batch in micro)


def test_processes_that_read_a_row_otherwise_have_other_checksums(run: Run) -> None:
    mixture, encoding = parts(run)
    together = range(len(mixture.train))

    def division(rank: int) -> int:
        return encoding.work(mixture, mixture.train, together, Share(rank, 2)).division

    before = division(0)
    assert before == division(1) < 2**32
    file = run.folder.parent / "asked.jsonl"
    file.write_bytes(file.read_bytes().replace(b"Question 3", b"Question 4"))  # as long as it was
    assert division(1) != before


def test_a_process_that_pads_where_another_packs_has_another_checksum(run: Run) -> None:
    mixture, encoding = parts(run)
    apart = range(len(mixture.train))
    packs, pads = (
        replace(encoding, packs=packed).work(mixture, mixture.train, apart, Share(rank, 2)).division
        for rank, packed in enumerate((True, False))
    )
    assert packs != pads
