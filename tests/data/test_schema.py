"""Columns as the `datasets` library writes them: classes have names, JSON is parsed, media lie in structs."""

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Json, LargeList, List, Sequence, Value

from mmsft.data.labels import Label
from mmsft.data.rows import Rows
from mmsft.data.schema import columns_of
from mmsft.data.sources import open_rows
from mmsft.data.wordings import NoTarget, Wording
from mmsft.errors import DataError
from mmsft.types import Record
from tests.makers import opened, picture

MOODS = ClassLabel(names=["sad", "glad"])
FEATURES = Features(
    {
        "mood": MOODS,
        "several": List(MOODS),
        "many": LargeList(MOODS),
        "inside": {"mood": MOODS, "n": Value("int32")},
        "turned": Sequence({"mood": MOODS, "n": Value("int32")}),
        "json": Json(),
        "tools": List(Json()),
        "image": Image(),
        "matrix": Array2D((2, 2), "int32"),
        "text": Value("string"),
    }
)
FULL: dict[str, Any] = {
    "mood": 1,
    "several": [0, 1],
    "many": [1],
    "inside": {"mood": 0, "n": 7},
    "turned": {"mood": [1, 0], "n": [1, 2]},
    "json": {"a": [1, "x"]},
    "tools": [{"name": "f"}, {"type": "function", "function": {"name": "g"}}],
    "matrix": [[1, 2], [3, 4]],
    "text": "fine",
}


def saved(folder: Path, rows: list[dict[str, Any]], features: Features) -> list[Rows]:
    """Returns rows as the library saves them in its two ways."""
    data = Dataset.from_list(rows, features=features)
    data.to_parquet(folder / "rows.parquet")
    data.save_to_disk(folder / "saved")
    return [open_rows(folder / "rows.parquet"), open_rows(folder / "saved")]


def names(value: Any) -> Any:
    """Returns the names of classes, wherever they are in a value."""
    if isinstance(value, list):
        return [names(each) for each in value]
    return value.name if isinstance(value, Label) else value


def test_rows_are_what_the_library_gives_and_classes_have_their_names(tmp_path: Path) -> None:
    image = {"path": str(picture(tmp_path / "a.png", "red")), "bytes": None}
    none: dict[str, Any] = dict.fromkeys([*FULL, "image"])
    for rows in saved(tmp_path, [{**FULL, "image": image}, none], FEATURES):
        full = rows[0]
        assert full == {**FULL, "image": full["image"]}
        assert pickle.loads(pickle.dumps(rows))[1] == none
        assert [names(full[name]) for name in ("mood", "several", "many")] == ["glad", ["sad", "glad"], ["glad"]]
        assert names(full["inside"]["mood"]) == "sad"
        assert names(full["turned"]["mood"]) == ["glad", "sad"]


def test_a_class_is_text_in_formats_filters_and_tags(tmp_path: Path) -> None:
    features = Features({"instruction": Value("string"), "mood": MOODS})
    for number, _ in enumerate(saved(tmp_path, [{"instruction": f"{n}?", "mood": n} for n in (0, 1)], features)):
        source = {"path": str(tmp_path / ("rows.parquet", "saved")[number]), "columns": {"output": "mood"}}
        mixture = opened({"sources": [{**source, "where": {"output": "glad"}, "tags": ["output"]}]})
        [talk] = [mixture.conversation(pair) for pair in mixture.train]
        assert [turn.text for turn in talk.turns] == ["1?", "glad"]
        assert talk.tags == {"output": "glad"}


def test_a_class_that_is_not_told_is_no_answer(tmp_path: Path) -> None:
    rows, _ = saved(
        tmp_path, [{"instruction": "?", "output": -1}], Features({"instruction": Value("string"), "output": MOODS})
    )
    mixture = opened({"sources": [{"path": str(tmp_path / "rows.parquet"), "format": "alpaca"}]})
    with pytest.raises(DataError, match=r"rows.parquet:1.*doesn't tell its class, which is -1"):
        mixture.conversation(mixture.train[0])
    guarded = Wording("w", "a{% if output != -1 %} ||| {{answer_choices[output]}}{% endif %}", "no ||| yes")
    with pytest.raises(NoTarget):
        guarded.render(rows[0], "r:1")
    with pytest.raises(DataError, match="no element -1"):
        Wording("w", "a ||| {{answer_choices[output]}}", "no ||| yes").render(rows[0], "r:1")
    assert [rows[0]["output"] < 0, rows[0]["output"] >= 0, rows[0]["output"] == 0] == [True, False, False]


def test_templates_choose_by_a_class_as_promptsource_does_and_may_name_it() -> None:
    row = {"mood": Label(1, "glad")}
    asked = Wording("w", "{{mood}} {{mood.name}} {{mood == 1}} ||| {{answer_choices[mood]}}", "no ||| yes")
    assert asked.render(row, "r:1")[:2] == ("1 glad True", "yes")


def test_pictures_are_read_from_their_bytes_or_else_below_the_media_root(tmp_path: Path) -> None:
    file = picture(tmp_path / "media" / "a.png", "red")
    said = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "!"}]
    images: list[dict[str, Any]] = [{"bytes": file.read_bytes(), "path": "gone.png"}, {"bytes": None, "path": "a.png"}]
    features = Features({"messages": [{"role": Value("string"), "content": Value("string")}], "images": List(Image())})
    schema = features.arrow_schema
    pq.write_table(
        pa.Table.from_pylist([{"messages": said, "images": [it]} for it in images], schema), tmp_path / "r.parquet"
    )
    mixture = opened({"sources": [{"path": str(tmp_path / "r.parquet"), "media_root": str(tmp_path / "media")}]})
    refs = [mixture.conversation(pair).turns[0].media[0].ref for pair in mixture.train]
    assert refs == [file.read_bytes(), str(file)]


@pytest.mark.parametrize("said", [b"{", b"[]", b'{"info": {}}', b'{"info": {"features": {"a": 5, "b": {"_type": 1}}}}'])
def test_metadata_that_says_nothing_changes_nothing(said: bytes) -> None:
    assert not columns_of(pa.schema({"a": pa.int64()}, metadata={"huggingface": said})).readings


def test_only_columns_that_are_there_are_read(tmp_path: Path) -> None:
    info = {"features": {name: {"_type": "ClassLabel", "names": ["x"]} for name in ("a", "b")}}
    schema = pa.schema({"a": pa.int64()}, metadata={"huggingface": json.dumps({"info": info})})
    pq.write_table(pa.Table.from_pylist([{"a": 0}], schema), tmp_path / "r.parquet")
    row: Record = open_rows(tmp_path / "r.parquet")[0]
    assert row == {"a": 0}
    assert names(row["a"]) == "x"


def test_a_text_that_should_be_json_is_its_rows_failure(tmp_path: Path) -> None:
    info = {"features": {"j": {"_type": "Json"}}}
    schema = pa.schema({"j": pa.string()}, metadata={"huggingface": json.dumps({"info": info})})
    pq.write_table(pa.Table.from_pylist([{"j": "{"}, {"j": "[1]"}], schema), tmp_path / "r.parquet")
    rows = open_rows(tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"r.parquet:1: column 'j' isn't the JSON"):
        rows[0]
    assert rows[1] == {"j": [1]}
