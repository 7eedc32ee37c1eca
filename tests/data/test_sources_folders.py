"""Folders, patterns, Arrow files, tasks of Natural Instructions and files of MIMIC-IT as rows."""

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmsft.data.formats import mimic_it
from mmsft.data.rows import Rows
from mmsft.data.sources import open_rows
from mmsft.errors import ConfigError, DataError
from tests.makers import picture, write_rows

TASK: dict[str, Any] = {
    "Definition": ["Add."],
    "Positive Examples": [{"input": "1", "output": "1", "explanation": ""}],
    "Instances": [{"id": "x", "input": "2", "output": ["2"]}, {"id": "y", "input": "3", "output": ["3"]}],
}
MIMIC: dict[str, Any] = {
    "meta": {"version": "0"},
    "data": {
        "A_0": {"instruction": "What?", "answer": "A cat.", "image_ids": ["i1"], "rel_ins_ids": ["A_1"]},
        "A_1": {"instruction": "Who?", "answer": "A dog.", "image_ids": ["i2", "i3"], "rel_ins_ids": []},
        "A_2": {"instruction": "Why?", "answer": "So.", "image_ids": [], "rel_ins_ids": ["B_9"]},
    },
}


def everything(rows: Rows) -> list[Any]:
    return [dict(rows[index]) for index in range(len(rows))]


def arrow(path: Path, rows: list[dict[str, Any]], *, stream: bool = True, batch: int = 2) -> Path:
    table = pa.Table.from_pylist(rows)
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


@pytest.mark.parametrize("stream", [True, False])
def test_an_arrow_file_is_read_batch_by_batch(tmp_path: Path, stream: bool) -> None:
    wanted = [{"n": number, "said": {"text": ["a" * number]}} for number in range(5)]
    rows = open_rows(arrow(tmp_path / "a.arrow", wanted, stream=stream))
    assert everything(rows) == wanted
    assert everything(pickle.loads(pickle.dumps(rows))) == wanted
    assert rows.row_id(4) == "a.arrow:5"


def test_a_cut_arrow_file_is_refused(tmp_path: Path) -> None:
    path = arrow(tmp_path / "a.arrow", [{"n": 1}] * 5)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="not a whole Arrow file"):
        open_rows(path)


def test_a_data_set_that_was_saved_with_splits_asks_which(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        (tmp_path / "saved" / split).mkdir(parents=True)
        arrow(tmp_path / "saved" / split / "data-0.arrow", [{"n": number} for number in range(count)])
        state = {"_data_files": [{"filename": "data-0.arrow"}]}
        (tmp_path / "saved" / split / "state.json").write_text(json.dumps(state))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(open_rows(tmp_path / "saved", "train")) == 3
    assert len(open_rows(tmp_path / "saved" / "test")) == 1
    with pytest.raises(ConfigError, match="state `split`; it has train, test"):
        open_rows(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"no split 'tran' \(did you mean 'train'\?\)"):
        open_rows(tmp_path / "saved", "tran")


def test_a_pattern_and_a_folder_join_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 1, 3):
        write_rows(tmp_path / f"part-{number}.jsonl", [{"n": number}, {"n": 10 * number}])
    rows = open_rows(tmp_path / "part-*.jsonl")
    assert [row["n"] for row in everything(rows)] == [1, 10, 2, 20, 3, 30]
    assert rows.row_id(3) == "part-2.jsonl:2"
    assert everything(open_rows(tmp_path)) == everything(rows)
    with pytest.raises(IndexError):
        rows[6]


def test_a_pattern_that_matches_nothing_and_a_folder_of_two_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        open_rows(tmp_path / "part-*.jsonl")
    with pytest.raises(ConfigError, match="without rows or media; it has nothing"):
        open_rows(tmp_path)
    write_rows(tmp_path / "a.jsonl", [{"n": 1}])
    (tmp_path / "b.csv").write_text("n\n1\n")
    with pytest.raises(ConfigError, match=r"files of several kinds \(.csv, .jsonl\); name one"):
        open_rows(tmp_path)


def test_media_are_rows_with_their_folder_as_label_and_what_lies_beside_them(tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        picture(tmp_path / "media" / colour / "1.png", colour)
    (tmp_path / "media" / "red" / "1.txt").write_text("A red square.\n")
    (tmp_path / "media" / "red" / "1.json").write_text('{"source": "me"}')
    rows = open_rows(tmp_path / "media")
    assert everything(rows) == [
        {"image": "blue/1.png", "label": "blue"},
        {"image": "red/1.png", "label": "red", "text": "A red square.", "source": "me"},
    ]
    assert rows.row_id(0) == "media/blue/1.png"


def test_a_table_of_metadata_speaks_for_its_folder(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", "red")
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": "1.png", "text": "Red."}])
    assert everything(open_rows(tmp_path)) == [{"file_name": "1.png", "text": "Red."}]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_task_gives_a_row_for_each_instance_with_the_tasks_fields(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "task001_add.json"
    path.write_text(json.dumps(TASK, indent=indent))
    rows = open_rows(path)
    assert [(row["Task"], row["Definition"], row["input"]) for row in everything(rows)] == [
        ("task001_add", ["Add."], "2"),
        ("task001_add", ["Add."], "3"),
    ]
    assert rows.row_id(1) == "task001_add.json:2"
    assert everything(pickle.loads(pickle.dumps(rows))) == everything(rows)


def test_mimic_it_brings_each_instruction_with_its_examples_and_their_pictures(tmp_path: Path) -> None:
    path = tmp_path / "A_instructions.json"
    path.write_text(json.dumps(MIMIC))
    rows = open_rows(path)
    assert rows.row_id(0) == "A_instructions.json:A_0"
    talk = mimic_it(rows[0], rows.row_id(0))
    assert [len(turn.media) for turn in talk.turns] == [2, 0, 1, 0]
    assert [medium.ref for turn in talk.turns for medium in turn.media] == ["i2", "i3", "i1"]
    with pytest.raises(DataError, match=r"A_instructions.json:A_2: rel_ins_ids names 'B_9', which isn't in the file"):
        mimic_it(rows[2], rows.row_id(2))


def test_an_object_of_one_row_stays_a_row(tmp_path: Path) -> None:
    assert everything(open_rows(write_rows(tmp_path / "one.json", [{"data": [1], "n": 2}]))) == [{"data": [1], "n": 2}]
