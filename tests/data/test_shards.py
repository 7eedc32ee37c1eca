"""Shards: what is written is read back, the same bytes each time, from wherever a build was stopped."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset

from mmsft.data import shards
from mmsft.data.formats.conversation import conversation, written
from mmsft.data.mixture import Mixture
from mmsft.data.shards import Build, build
from mmsft.errors import ConfigError
from mmsft.types import Conversation, Media, Text, ToolCall, Turn
from tests.makers import Lab, lines, opened, picture, write_rows


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab.make(tmp_path, rows=40)


def rows_of(mixture: Mixture) -> Iterator[tuple[Any, ...]]:
    """Yields what each row says, with the bytes of its media."""
    for pair in mixture.train:
        for turn in mixture.conversation(pair).turns:
            yield turn.role, turn.text, turn.weight, *(shards._bytes(medium) for medium in turn.media)


def built(lab: Lab, out: str, size: int = 4000) -> Build:
    mixture = opened(lab.recipe())
    return build(mixture, mixture.train, lab.folder / out, "train", size)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_written_is_read_back_with_its_media(lab: Lab) -> None:
    made = built(lab, "out")
    assert len(made.shards) > 3
    assert (made.rows, made.lost, made.done) == (40, 0, 40)
    again = opened({"sources": [{"path": f"{lab.folder}/out/train-*.tar"}]})
    assert again.sources[0].format == "conversation"
    assert list(rows_of(again)) == list(rows_of(opened(lab.recipe())))
    assert again.conversation(again.train[0]).tags == {"kind": "short"}


def test_the_webdataset_library_reads_the_shards(lab: Lab) -> None:
    made = built(lab, "out")
    urls = [str(lab.folder / "out" / shard.name) for shard in made.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == [f"rows.jsonl:{number}" for number in range(1, 41)]
    assert sum("0.png" in sample for sample in samples) == 26


def test_two_builds_have_the_same_bytes(lab: Lab) -> None:
    built(lab, "one")
    built(lab, "two")
    assert folder_bytes(lab.folder / "one") == folder_bytes(lab.folder / "two")


@pytest.mark.parametrize("stop", [1, 3])
def test_a_build_that_was_stopped_goes_on_to_the_same_bytes(
    lab: Lab, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = lab.rows(40)
    rows[2] = {"conversations": []}
    rows[30]["image"] = "nowhere.png"
    write_rows(lab.folder / "rows.jsonl", rows)
    built(lab, "whole")
    replace, count = os.replace, 0

    def killed(old: Path, new: Path) -> None:
        nonlocal count
        count += str(new).endswith(".json")
        if count == stop:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        built(lab, "out")
    monkeypatch.undo()
    made = built(lab, "out")
    assert (made.rows, made.lost) == (38, 2)
    left = {name for name in os.listdir(lab.folder / "out") if name.startswith(".")}
    assert {name: data for name, data in folder_bytes(lab.folder / "out").items() if name not in left} == folder_bytes(
        lab.folder / "whole"
    )
    assert [line["row"] for line in lines(lab.folder / "out" / "train.lost.jsonl")] == ["rows.jsonl:3", "rows.jsonl:31"]


def test_a_build_of_another_recipe_and_one_that_was_touched_are_refused(lab: Lab) -> None:
    made = built(lab, "out")
    mixture = opened(lab.recipe())
    with pytest.raises(ConfigError, match="holds a build of another recipe"):
        build(mixture, mixture.train[:5], lab.folder / "out", "train", 4000)
    (lab.folder / "out" / made.shards[0].name).write_bytes(b"")
    with pytest.raises(ConfigError, match="isn't as it was built"):
        built(lab, "out")
    (lab.folder / "out" / "train.build.json").write_text("{")
    with pytest.raises(ConfigError, match="can't be read"):
        built(lab, "out")


def test_a_folder_that_refuses_is_the_users_error(lab: Lab) -> None:
    (lab.folder / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        built(lab, "file/out")


def test_a_tree_with_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    image = Media("image", str(picture(tmp_path / "a.png", "red")))
    clip = Media("video", b"1234", (("end", 2.0), ("start", 0.5)))
    turns = (
        Turn("system", (Text("S"),)),
        Turn("user", (image, Text("and"), clip)),
        Turn("assistant", (Text("a"),), weight=0.5, reasoning="hm", rank=0),
        Turn("assistant", (), parent=1, tool_calls=(ToolCall("f", {"x": 1}, "c"),), rank=1),
        Turn("tool", (Text("4"),), name="f"),
    )
    tools = ({"type": "function", "function": {"name": "f"}},)
    talk = Conversation("r:1", turns, {"kind": "k"}, tools, {"enable_thinking": False})
    row = json.loads(json.dumps(written(talk, {image: "0.png", clip: "1.mp4"})))
    back = conversation({**row, "__members__": {"0.png": image.ref, "1.mp4": "clip.mp4"}}, "r:1")
    assert back.turns[0] == turns[0]
    assert back.turns[1].parts[2] == Media("video", "clip.mp4", clip.options)
    assert back.turns[2:] == turns[2:]
    assert (back.tags, back.tools, back.template_kwargs) == (talk.tags, talk.tools, talk.template_kwargs)
