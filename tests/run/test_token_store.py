"""The store of tokens: what comes from it is what tokenising gives, and nothing that is broken there does harm."""

import logging
import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsft.data import token_store
from mmsft.data.chat import ChatEncoder
from mmsft.data.ledger import Entry
from mmsft.data.seq2seq import Sides
from mmsft.data.token_store import TokenStore, encoded_of, entry_of
from mmsft.run import Run
from mmsft.types import Encoded, Media, Placed, Segment, Targets
from tests.makers import Lab, finish, losses, write_rows

Make = Callable[..., Run]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Opens and judges each test's stores anew."""
    yield
    for connection in token_store._connections.values():
        connection.close()
    token_store._connections.clear()
    token_store._off.clear()


def text(number: int, **more: Any) -> dict[str, Any]:
    return {"instruction": f"Say {number}.", "output": f"It is {number}, I say.", **more}


def recipe(lab: Lab, rows: list[dict[str, Any]], **source: Any) -> dict[str, Any]:
    write_rows(lab.folder / "it.jsonl", rows)
    changes = {key: source.pop(key) for key in ("template", "learn", "length", "too_long") if key in source}
    listed = {"path": str(lab.folder / "it.jsonl"), "format": "alpaca", **source}
    return {"sources": [listed], "template": "chatml", "length": 600} | changes


def staged(lab: Lab, recipe: dict[str, Any]) -> dict[str, Any]:
    return lab.stage(recipe=recipe, micro_batch="600 tokens")


def read(run: Run) -> list[Encoded | Entry]:
    stage = run.config.stages[0]
    mixture = run.mixture(stage.recipe)
    return run.encoding(stage).rows(mixture, mixture.train)


def plain(found: list[Encoded | Entry]) -> list[dict[str, Any]]:
    """Returns rows with arrays as lists, to be compared, with their types."""

    def listed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return (str(value.dtype), value.tolist())
        if isinstance(value, Mapping):
            return {key: listed(item) for key, item in value.items()}
        return [listed(item) for item in value] if isinstance(value, tuple) else value

    return [listed(asdict(one)) for one in found]


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists the ids of the rows that are tokenised."""
    seen: list[str] = []
    whole = ChatEncoder.encode_all

    def watched(self: ChatEncoder, conversations: Any, sources: Any) -> Any:
        seen.extend(conversation.id for conversation in conversations)
        return whole(self, conversations, sources)

    monkeypatch.setattr(ChatEncoder, "encode_all", watched)
    return seen


TREE = {
    "turns": [
        {"role": "user", "parts": [{"text": "What is 2?"}]},
        {"role": "assistant", "parts": [{"text": "A number."}]},
        {"role": "assistant", "parts": [{"text": "An even number."}], "parent": 0},
    ],
}
LONG = {
    "conversations": [{"from": who, "value": f"{who} {n} " * 4} for n in range(8) for who in ("human", "gpt")],
}
KINDS: dict[str, Callable[[Lab], dict[str, Any]]] = {
    "text": lambda lab: recipe(lab, [text(1), text(2)]),
    "pictures": Lab.recipe,
    "tree": lambda lab: recipe(lab, [TREE], format="conversation"),
    "all is learned": lambda lab: recipe(lab, [text(1)], learn="all"),
    "losses by a tag": lambda lab: {**lab.recipe(), "loss_by": "kind"},
    "a row with a note": lambda lab: recipe(lab, [LONG], format="llava", length=150, too_long="trim"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_from_the_store_are_those_that_were_tokenised(lab: Lab, tokenised: list[str], kind: str) -> None:
    run = lab.run("a", [staged(lab, KINDS[kind](lab))])
    first = read(run)
    assert all(isinstance(one, Encoded) for one in first)
    assert kind != "a row with a note" or "left out" in str(first[0])
    assert len(tokenised) == len(first)
    again = read(run)
    assert len(tokenised) == len(first)
    assert plain(again) == plain(first)
    bare = lab.run("bare", [staged(lab, KINDS[kind](lab))], tokens=None)
    assert plain(read(bare)) == plain(first)


def test_an_encoder_decoders_rows_come_back(lab: Lab, tokenised: list[str]) -> None:
    run = lab.run("a", [staged(lab, recipe(lab, [text(1)]))])
    rows = two_sided(run)
    first, again = rows(), rows()
    assert len(tokenised) == 1
    assert plain(again) == plain(first)
    assert isinstance(first[0], Encoded)
    assert first[0].two_sided


def two_sided(run: Run) -> Callable[[], list[Encoded | Entry]]:
    """Returns what reads a run's rows as an encoder–decoder's."""
    stage = run.config.stages[0]
    made = run.encoding(stage)
    encoder = replace(made.encoder, sides=Sides.of(made.encoder.tokenizer, 0))
    two = replace(made, encoder=encoder, tokens=run.token_store(encoder))
    mixture = run.mixture(stage.recipe)
    return lambda: two.rows(mixture, mixture.train)


def test_a_row_is_known_wherever_it_stands_and_a_changed_one_is_not(lab: Lab, tokenised: list[str]) -> None:
    run = lab.run("a", [staged(lab, recipe(lab, [text(1), text(2)]))])
    read(run)
    tokenised.clear()
    moved = lab.run("b", [staged(lab, recipe(lab, [text(2), text(7), text(1, output="It is 1.")]))])
    found = read(moved)
    assert tokenised == ["it.jsonl:2", "it.jsonl:3"]
    assert [one.id for one in found if isinstance(one, Encoded)] == ["it.jsonl:1", "it.jsonl:2", "it.jsonl:3"]


OTHERWISE: dict[str, dict[str, Any]] = {
    "template": {"template": "vicuna"},
    "learn": {"learn": "all"},
    "length": {"length": 149},
    "columns": {"columns": {"output": "instruction", "instruction": "output"}},
    "new tokens": {},
}


@pytest.mark.parametrize("change", OTHERWISE)
def test_a_row_that_is_written_otherwise_is_tokenised_anew(lab: Lab, tokenised: list[str], change: str) -> None:
    read(lab.run("a", [staged(lab, recipe(lab, [text(1)]))]))
    tokenised.clear()
    model = lab.model(new_tokens=["<new>"]) if change == "new tokens" else lab.model()
    found = read(lab.run("b", [staged(lab, recipe(lab, [text(1)], **OTHERWISE[change]))], model=model))
    assert len(tokenised) == 1
    assert isinstance(found[0], Encoded)


def test_a_medium_that_takes_other_tokens_is_not_taken_from_the_store(lab: Lab, tokenised: list[str]) -> None:
    read(lab.run("a", [lab.stage()]))
    tokenised.clear()
    model = lab.model()
    model["towers"]["image"]["adapter"] |= {"pool": 1}
    found = read(lab.run("b", [lab.stage()], model=model))
    pictures = [one for one in found if isinstance(one, Encoded) and one.media]
    assert len(tokenised) == len(pictures) > 0
    assert all(len(one.media[0].slots) == 1 for one in pictures)


def test_what_is_drawn_by_the_rows_id_is_drawn_anew_for_another_id(lab: Lab, tokenised: list[str]) -> None:
    (lab.folder / "ask.yaml").write_text(
        "templates: {a: {name: a, jinja: 'One {{x}}? ||| {{x}}'}, b: {name: b, jinja: 'Two {{x}}? ||| {{x}}'}}"
    )
    ways: dict[str, Any] = {"format": "auto", "templates": {"file": str(lab.folder / "ask.yaml")}}
    rows = [{"x": "same"}] * 8
    run = lab.run("a", [staged(lab, recipe(lab, rows, **ways))])
    first = read(run)
    assert len(tokenised) == 8
    assert len({one.input_ids.tobytes() for one in first if isinstance(one, Encoded)}) == 2
    assert plain(read(run)) == plain(first)
    assert len(tokenised) == 8


def test_media_of_bytes_are_not_kept(lab: Lab) -> None:
    run = lab.run("a", [lab.stage()])
    with_picture = next(one for one in read(run) if isinstance(one, Encoded) and one.media)
    placed = with_picture.media[0]
    inline = replace(with_picture, media=(replace(placed, media=replace(placed.media, ref=b"png")),))
    encoder = run.encoder(run.config.stages[0].recipe)
    assert entry_of(with_picture, encoder) is not None
    assert entry_of(inline, encoder) is None


def test_the_store_knows_all_that_a_row_has() -> None:
    known = {
        Encoded: "id input_ids positions segments targets media source note left_out shrunk values rows",
        Placed: "media slots context",
        Targets: "position token weight group",
        Segment: "start end parent",
        Media: "modality ref options",
    }
    for kind, names in known.items():
        assert [one.name for one in fields(kind)] == names.split(), f"let entry_of and encoded_of keep it: {kind}"


def test_a_medium_of_which_an_adapter_reads_what_is_asked_is_not_kept(lab: Lab) -> None:
    run = lab.run("a", [lab.stage()])
    found = next(one for one in read(run) if isinstance(one, Encoded) and one.media)
    encoder = run.encoder(run.config.stages[0].recipe)
    entry = entry_of(found, encoder)
    assert entry is not None
    reads = replace(encoder, contexts={"image": lambda text: (1,)})
    assert entry_of(found, reads) is None
    assert encoded_of(entry, "a", 0, encoder) is not None
    assert encoded_of(entry, "a", 0, reads) is None


def database(lab: Lab) -> Path:
    (file,) = (lab.folder / "tokens").glob("*.sqlite")
    return file


@pytest.mark.parametrize("harm", ["a bit", "cut", "empty", "no database"])
def test_what_is_spoilt_is_tokenised_again(
    lab: Lab, tokenised: list[str], harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = lab.run("a", [staged(lab, recipe(lab, [text(1)]))])
    first = read(run)
    file = database(lab)
    for connection in token_store._connections.values():
        connection.close()
    token_store._connections.clear()
    if harm == "no database":
        file.write_bytes(b"rubbish" * 1000)
    else:
        with sqlite3.connect(file) as connection:
            ((entry,),) = connection.execute("select entry from rows").fetchall()
            spoilt = {"a bit": entry[:-1] + bytes([entry[-1] ^ 1]), "cut": entry[:-4], "empty": b""}[harm]
            connection.execute("update rows set entry = ?", (spoilt,))
        connection.close()
    with caplog.at_level(logging.WARNING):
        assert plain(read(run)) == plain(first)
    assert len(tokenised) == 2
    assert ("spoilt" in caplog.text) == (harm == "no database")
    if harm != "no database":
        read(run)
        assert len(tokenised) == 2


def test_a_store_that_cannot_be_written_is_said_once(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    (lab.folder / "tokens").write_text("a file in the place of a folder")
    run = lab.run("a", [staged(lab, recipe(lab, [text(1)]))])
    with caplog.at_level(logging.WARNING):
        assert isinstance(read(run)[0], Encoded)
        assert isinstance(read(run)[0], Encoded)
    assert caplog.text.count("tokens.folder") == 1


def test_a_full_store_takes_no_more_but_gives_what_it_has(
    lab: Lab, tokenised: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    stage = staged(lab, recipe(lab, [text(1)]))
    read(lab.run("a", [stage]))
    token_store._off.clear()
    stage = staged(lab, recipe(lab, [text(1), text(2)]))
    full = {"folder": str(lab.folder / "tokens"), "limit": 1}
    tokenised.clear()
    with caplog.at_level(logging.WARNING):
        read(lab.run("b", [stage], tokens=full))
    assert tokenised == ["it.jsonl:2"]
    assert "tokens.limit" in caplog.text


def test_room_is_made_of_what_nobody_used_for_a_day(lab: Lab) -> None:
    folder = lab.folder / "tokens"
    folder.mkdir()
    old, new = folder / "old.sqlite", folder / "new.sqlite"
    for file in (old, new):
        file.write_bytes(b"0" * 100_000)
    os.utime(old, (0, 0))
    run = lab.run("a", [staged(lab, recipe(lab, [text(1)]))], tokens={"folder": str(folder), "limit": 180_000})
    read(run)
    assert not old.exists()
    assert new.exists()


def _write(folder: str, first: int) -> None:
    store = TokenStore(Path(folder) / "one.sqlite", 1 << 30)
    for number in range(first, first + 200):
        store.put({number.to_bytes(16, "big"): b"entry %d" % number})


def test_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path), 200 * n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    store = TokenStore(tmp_path / "one.sqlite", 1 << 30)
    found = store.get(number.to_bytes(16, "big") for number in range(400))
    assert len(found) == 400
    assert found[(7).to_bytes(16, "big")] == b"entry 7"


def test_training_is_the_same_with_a_cold_a_warm_and_no_store(lab: Lab) -> None:
    stage = lab.stage(batch="300 tokens", micro_batch="150 tokens", duration="2 epochs")
    runs: dict[str, dict[str, Any]] = {"cold": {"workers": 2}, "warm": {"workers": 2}, "none": {"tokens": None}}
    for name, changes in runs.items():
        finish(lab.run(name, [stage], **changes))
    found = {name: losses(lab.folder / name) for name in runs}
    assert len(found["none"]) > 2
    assert found["cold"] == found["warm"] == found["none"]
