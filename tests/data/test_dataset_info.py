"""LLaMA-Factory's dataset_info.json: its entries are read as it reads them, and what they say in vain is refused."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mmsft.config import RecipeConfig
from mmsft.data.dataset_info import read_entry
from mmsft.data.mixture import Mixture
from mmsft.errors import ConfigError, DataError
from tests.data.formats.rows import said
from tests.makers import fetched, opened, picture, write_rows

TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CHAT = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def described(folder: Path, entry: Any, rows: list[dict[str, Any]], **source: Any) -> dict[str, Any]:
    """Returns a recipe with an entry and its rows."""
    write_rows(folder / "rows.jsonl", rows)
    file = folder / "dataset_info.json"
    file.write_text(json.dumps({"it": {"file_name": "rows.jsonl", **entry} if isinstance(entry, dict) else entry}))
    return {"sources": [{"path": str(file), "entry": "it", **source}]}


def only(mixture: Mixture) -> Any:
    [talk] = [mixture.conversation(pair) for pair in mixture.train]
    return talk


def test_an_entry_without_columns_is_alpaca_and_its_name_the_sources(tmp_path: Path) -> None:
    mixture = opened(described(tmp_path, {}, [{"instruction": "i", "input": "in", "output": "o", "system": "S"}]))
    assert said(only(mixture)) == [("user", ["i\nin"]), ("assistant", ["o"])]
    assert mixture.sources[0].name == "it"
    assert mixture.row_id(mixture.train[0]) == "rows.jsonl:1"


def test_where_columns_are_named_only_those_are_read(tmp_path: Path) -> None:
    columns = {"prompt": "q", "response": "a", "system": "s", "history": "before", "images": "picture"}
    row = {
        "q": "<image>Q",
        "a": "A",
        "s": "S",
        "before": [["x", "y"]],
        "picture": "p.png",
        "input": "idle",
        "tools": "?",
    }
    picture(tmp_path / "p.png", "red")
    talk = only(opened(described(tmp_path, {"columns": columns}, [row])))
    assert said(talk)[0] == ("system", ["S"])
    assert [(turn.role, turn.text) for turn in talk.turns[1:]] == [
        *(("user", "x"), ("assistant", "y")),
        *(("user", "Q"), ("assistant", "A")),
    ]
    assert talk.turns[3].media[0].ref == str(tmp_path / "p.png")


def test_turns_are_read_by_the_entrys_tags(tmp_path: Path) -> None:
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "A", "assistant_tag": "B", "system_tag": "C"}
    tags |= {"function_tag": "D", "observation_tag": "E"}
    turns = [("C", "S"), ("A", "q"), ("D", '{"name": "f", "arguments": {}}'), ("E", "r"), ("B", "a")]
    row = {"talk": [{"who": who, "what": what} for who, what in turns], "s": "overridden by the turn"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "talk", "system": "s"}, "tags": tags}
    talk = only(opened(described(tmp_path, entry, [row])))
    assert [turn.role for turn in talk.turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert (talk.turns[0].text, talk.turns[2].tool_calls[0].name, talk.turns[4].text) == ("S", "f", "a")


def test_speakers_that_the_tags_turn_around_are_turned_around(tmp_path: Path) -> None:
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "gpt", "assistant_tag": "human"}
    entry = {"formatting": "sharegpt", "tags": tags}
    talk = only(opened(described(tmp_path, entry, [{"conversations": TALK[::-1]}])))
    assert said(talk) == [("user", ["a"]), ("assistant", ["q"])]


def test_a_speaker_whom_the_tags_do_not_name_fails_its_row(tmp_path: Path) -> None:
    entry = {"formatting": "sharegpt", "columns": {"messages": "m"}, "tags": CHAT}
    rows = [{"m": [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]}]
    mixture = opened(described(tmp_path, entry, rows))
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: turn 1: its 'role' is str 'system', which is none of the entry"
    ):
        mixture.conversation(mixture.train[0])


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt"])
def test_a_ranking_is_a_pair_in_either_formatting(tmp_path: Path, formatting: str) -> None:
    if formatting == "alpaca":
        columns = {"prompt": "p", "query": "in", "history": "h", "chosen": "c", "rejected": "r"}
        row: dict[str, Any] = {"p": "P", "in": "Q", "c": "good", "r": "bad", "h": [["x", "y"]]}
        before = [["x"], ["y"], ["P\nQ"]]
    else:
        columns = {"messages": "m", "chosen": "c", "rejected": "r"}
        row = {"m": [*TALK, TALK[0]], "c": {"from": "gpt", "value": "good"}, "r": {"from": "gpt", "value": "bad"}}
        before = [["q"], ["a"], ["q"]]
    entry = {"formatting": formatting, "ranking": True, "columns": columns}
    talk = only(opened(described(tmp_path, entry, [row])))
    assert [parts for _, parts in said(talk)] == [*before, ["good"], ["bad"]]
    assert [turn.weight for turn in talk.turns] == [1, 0, 1, 1, 0]
    assert talk.ranked_pairs() == ((3, 4),)


@pytest.mark.parametrize("liked", [True, False])
def test_an_answer_is_judged_by_the_kto_tag(tmp_path: Path, liked: bool) -> None:
    entry = {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "label"}}
    talk = only(opened(described(tmp_path, entry, [{"conversations": TALK, "label": liked}])))
    assert (talk.turns[1].rank, talk.turns[1].weight) == ((0, 1) if liked else (1, 0))


def test_samples_are_drawn_once_and_for_all_and_other_settings_of_a_source_hold(tmp_path: Path) -> None:
    rows = [{"instruction": f"{n}", "output": "o", "kind": "even" if n % 2 == 0 else "odd"} for n in range(100)]
    recipe = described(tmp_path, {"num_samples": 20}, rows, tags=["kind"])
    first, again = (opened(recipe) for _ in range(2))
    ids = [first.row_id(pair) for pair in first.train]
    assert ids == [again.row_id(pair) for pair in again.train]
    assert len(set(ids)) == 20
    assert ids != [f"rows.jsonl:{n + 1}" for n in range(20)]
    odd = opened(described(tmp_path, {"num_samples": 20}, rows, where={"kind": "odd"}, tags=["kind"]))
    assert 0 < len(odd.train) < 20
    source = pickle.loads(pickle.dumps(odd.sources[0]))
    assert {source.conversation(int(row)).tags["kind"] for _, row in odd.train} == {"odd"}
    with pytest.raises(ConfigError, match=r"num_samples: 101 of 100 rows; .*`repeat`"):
        opened(described(tmp_path, {"num_samples": 101}, rows))


def test_media_lie_beside_the_entrys_file_unless_the_recipe_says_where(tmp_path: Path) -> None:
    entry = {"file_name": "inside/rows.jsonl", "columns": {"prompt": "q", "response": "a", "images": "i"}}
    for folder in (tmp_path, tmp_path / "elsewhere"):
        picture(folder / "p.png", "red")
    (tmp_path / "inside").mkdir()
    write_rows(tmp_path / "inside" / "rows.jsonl", [{"q": "<image>", "a": "a", "i": ["p.png"]}])
    assert only(opened(described(tmp_path, entry, []))).turns[0].media[0].ref == str(tmp_path / "p.png")
    elsewhere = opened(described(tmp_path, entry, [], media_root=str(tmp_path / "elsewhere")))
    assert only(elsewhere).turns[0].media[0].ref == str(tmp_path / "elsewhere" / "p.png")


def test_a_column_that_only_a_late_row_has_is_there(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"q": f"{n}", "a": "a"} for n in range(300)]
    rows[-1]["s"] = "S"
    entry = {"columns": {"prompt": "q", "response": "a", "system": "s"}}
    mixture = opened(described(tmp_path, entry, rows))
    assert mixture.conversation(mixture.train[-1]).turns[0].text == "S"


def test_a_file_of_another_sum_is_refused(tmp_path: Path) -> None:
    rows = [{"instruction": "i", "output": "o"}]
    sum = hashlib.sha1(write_rows(tmp_path / "rows.jsonl", rows).read_bytes()).hexdigest()
    assert len(opened(described(tmp_path, {"file_sha1": sum}, rows)).train) == 1
    with pytest.raises(ConfigError, match=f"entry 'it': .* has sha1 {sum}, and not 00"):
        opened(described(tmp_path, {"file_sha1": "00"}, rows))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"file_name": None}, "names neither a file_name nor a hf_hub_url"),
        ({"ms_hub_url": "a/b"}, "ms_hub_url: it is on ModelScope"),
        ({"om_hub_url": "a/b"}, "om_hub_url: it is on Modelers"),
        ({"script_url": "it.py"}, "script_url: no code of data sets is run"),
        ({"cloud_file_name": "s3://a"}, "cloud_file_name: it isn't fetched from there"),
        ({"subset": "en"}, "subset: is for data sets of the hub"),
        ({"folder": "en"}, "folder: is for data sets of the hub"),
        ({"split": "train[:10%]"}, r"split: a file is all of its rows; got 'train\[:10%\]'"),
        ({"hf_hub_url": "a/b", "file_sha1": "00"}, "file_sha1: is of a file"),
        ({"formatting": "openai"}, "formatting: openai: adds a system text"),
        ({"formatting": "sharegtp"}, r"formatting: should be .*alpaca.*did you mean 'sharegpt'"),
        ({"ranking": True}, "ranking: needs columns.chosen and columns.rejected"),
        ({"ranking": "yes please"}, "ranking: should be true or false"),
        ({"columns": {"prompt": "q", "response": "a", "chosen": "c"}}, "columns.chosen: is read with ranking: true"),
        ({"columns": {"prompt": "text"}}, "columns: names no response: texts for pre-training"),
        ({"columns": {"response": "a"}}, "columns: names neither prompt nor query"),
        (
            {"columns": {"prompt": "q", "response": "a", "messages": "m"}},
            "columns.messages: isn't read with formatting: alp",
        ),
        ({"formatting": "sharegpt", "columns": {"system": "s"}}, "columns: names no messages"),
        ({"formatting": "sharegpt", "columns": {"messages": "m", "query": "q"}}, "columns.query: isn't read"),
        ({"columns": {"promt": "q"}}, r"columns.promt: not known here \(did you mean 'prompt'\?\)"),
        ({"colums": {}}, r"colums: not known here \(did you mean 'columns'\?\)"),
        ({"tags": {"role_tag": "role"}}, "tags: are of turns"),
        ({"formatting": "sharegpt", "tags": {"role_tag": "role"}}, "tags: names no content_tag"),
        ({"formatting": "sharegpt", "tags": {**CHAT, "user_tag": "assistant"}}, "user_tag and assistant_tag are both"),
        ({"num_samples": 0}, "num_samples: should be 1 or more"),
        (
            {"columns": {"prompt": "instrucion", "response": "output"}},
            r"columns.prompt: no row has a column 'instrucion' \(did you mean 'instruction'",
        ),
        ({"file_name": "row.jsonl"}, "row.jsonl: no such file"),
        ("rows.jsonl", "entry 'it': should be an object"),
    ],
)
def test_what_an_entry_says_in_vain_is_refused_by_its_key(tmp_path: Path, entry: Any, says: str) -> None:
    recipe = described(tmp_path, entry, [{"instruction": "i", "input": "", "output": "o"}])
    with pytest.raises(ConfigError, match=says):
        opened(recipe)


def test_all_that_is_wrong_with_an_entry_is_said_at_once(tmp_path: Path) -> None:
    entry = {"file_name": None, "split": "test", "ranking": True, "formatting": "sharegpt", "tags": {"role_tag": "r"}}
    with pytest.raises(ConfigError) as refused:
        opened(described(tmp_path, entry, [{"a": 1}]))
    for part in ("names neither a file_name", "split:", "ranking: needs", "tags: names no user_tag"):
        assert part in str(refused.value)


def test_a_file_or_an_entry_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    recipe = described(tmp_path, {}, [{"a": 1}])
    for changes, says in (
        ({"entry": "its"}, r"no entry 'its' \(did you mean 'it'\?\); there are it"),
        ({"path": str(tmp_path / "rows.jsonl")}, "no entry 'it'; there are a"),
        ({"path": str(tmp_path / "nowhere.json")}, "can't be read as a dataset_info.json"),
    ):
        with pytest.raises(ConfigError, match=says):
            opened({"sources": [{**recipe["sources"][0], **changes}]})
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="isn't LLaMA-Factory's"):
        read_entry(str(tmp_path / "list.json"), "it")


@pytest.mark.parametrize(
    "idle", [{"format": "alpaca"}, {"split": "train"}, {"columns": {"a": "b"}}, {"sha256": "0" * 64}]
)
def test_what_the_entry_says_may_not_be_said_again(idle: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"the entry says how its rows are read; leave out {next(iter(idle))}"):
        RecipeConfig.model_validate({"sources": [{"path": "dataset_info.json", "entry": "it", **idle}]})


DEMOS = {
    "identity": 91,
    "alpaca_en_demo": 999,
    "alpaca_zh_demo": 1000,
    "glaive_toolcall_en_demo": 300,
    "glaive_toolcall_zh_demo": 300,
    "mllm_demo": 6,
    "mllm_audio_demo": 3,
    "mllm_video_demo": 3,
    "mllm_video_audio_demo": 3,
    "dpo_en_demo": 300,
    "dpo_zh_demo": 300,
    "kto_en_demo": 300,
}


@pytest.mark.assets
def test_every_entry_with_a_file_of_llama_factorys_own_is_read_to_the_last_row() -> None:
    info = json.loads((fetched("llamafactory-data") / "dataset_info.json").read_text())
    assert {name for name, entry in info.items() if "file_name" in entry} == {*DEMOS, "wiki_demo", "c4_demo"}
    for name, count in DEMOS.items():
        mixture = opened({"sources": [{"path": "asset:llamafactory-data/dataset_info.json", "entry": name}]})
        talks = [mixture.conversation(pair) for pair in mixture.train]
        assert len(talks) == count
        learned = sum(any(turn.weight for turn in talk.turns if turn.role == "assistant") for talk in talks)
        assert learned == (150 if name == "kto_en_demo" else count)


@pytest.mark.assets
def test_every_entry_of_llama_factorys_own_is_understood_but_for_those_that_name_no_answer() -> None:
    path = "asset:llamafactory-data/dataset_info.json"
    info = json.loads((fetched("llamafactory-data") / "dataset_info.json").read_text())
    refused: dict[str, list[str]] = {}
    for name in info:
        try:
            read_entry(path, name)
        except ConfigError as error:
            refused.setdefault(str(error).split("': ")[1].partition(":")[0], []).append(name)
    texts = [name for name, entry in info.items() if list(entry.get("columns", {})) == ["prompt"]]
    assert refused == {"ms_hub_url": ["deepctrl"], "ranking": ["nectar_rm", "orca_dpo_de"], "columns": texts}
