"""Shards on the network: fetched when their rows' turn comes, in an order that is that of no particular process."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsft.data import order, streams
from mmsft.data.media_reader import file_of
from mmsft.data.mixture import Mixture
from mmsft.data.order import Order
from mmsft.data.remote import LIMIT, folder, place
from mmsft.data.shards import build
from mmsft.errors import ConfigError, DataError
from tests.makers import COLOURS, opened, picture, row, write_rows
from tests.web import Web

SHARDS, IN_EACH = 12, 5


def tar(rows: dict[str, dict[str, bytes]]) -> bytes:
    """Returns a tar of rows: their files by key and suffix."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as written:
        for key, files in rows.items():
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                written.addfile(info, io.BytesIO(data))
    return out.getvalue()


def said(number: int) -> dict[str, bytes]:
    return {"json": json.dumps({"instruction": f"Say {number}.", "output": f"{number}"}).encode()}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    streams._opened.cache_clear()
    yield
    streams._opened.cache_clear()


@pytest.fixture
def far(web: str) -> str:
    """Serves shards 00 to 11, and returns what names them all."""
    for shard in range(SHARDS):
        rows = {f"{number:04d}": said(number) for number in range(shard * IN_EACH, (shard + 1) * IN_EACH)}
        Web.files[f"/s-{shard:02d}.tar"] = tar(rows)
    return f"{web}/s-{{00..11}}.tar"


def recipe(path: str, *others: dict[str, Any], **more: Any) -> dict[str, Any]:
    source = {"path": path, "urls": "any", "name": "far", "format": "alpaca"}
    return {
        "sources": [source | {key: more.pop(key) for key in ("limit", "cap", "where") if key in more}, *others],
        **more,
    }


def answers(mixture: Mixture, indices: Any) -> list[str]:
    return [mixture.conversation(mixture.train[index]).turns[1].text for index in indices]


def reopened(path: str, **more: Any) -> Mixture:
    """Opens shards that were counted, of which none is kept any more."""
    opened(recipe(path, **more))
    for file in folder().glob("[!.]*.tar"):
        file.unlink()
    Web.asked.clear()
    streams._opened.cache_clear()
    return opened(recipe(path, **more))


def test_rows_are_those_of_all_shards(far: str) -> None:
    mixture = opened(recipe(far))
    assert answers(mixture, range(len(mixture.train))) == [str(number) for number in range(60)]
    assert mixture.row_id(mixture.train[13]) == "s-02.tar:4"
    assert set(Web.asked.values()) == {1}


def test_counted_shards_are_opened_without_being_fetched_and_a_seek_fetches_those_of_its_rows(far: str) -> None:
    mixture = reopened(far)
    assert not Web.asked
    rows = mixture.order(3).at(87, 91)  # in the middle of the second epoch
    answers(mixture, rows)
    assert {int(path[3:5]) for path in Web.asked} == {int(row) // IN_EACH for row in rows}
    assert len(Web.asked) <= order._WINDOW


def test_an_epoch_has_each_row_once_and_few_shards_at_a_time(far: str) -> None:
    found = opened(recipe(far)).order(3)
    for epoch in range(3):
        rows = found.at(60 * epoch, 60 * (epoch + 1))
        assert sorted(rows) == list(range(60))
        windows = rows.reshape(3, -1) // IN_EACH
        assert [len(set(window)) for window in windows] == [4, 4, 4]
        assert not np.array_equal(windows, np.sort(windows))  # rows of different shards among each other
    first, second = found.at(0, 60), found.at(60, 120)
    assert not np.array_equal(first, second)
    assert set(first[:20] // IN_EACH) != set(second[:20] // IN_EACH)


def test_an_order_of_shards_does_not_depend_on_where_reading_begins(far: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "near.jsonl", [{"instruction": "Near.", "output": f"n{number}"} for number in range(7)])
    near = {"path": str(tmp_path / "near.jsonl"), "format": "alpaca", "weight": 1.0}
    made = recipe(far, near)
    made["sources"][0]["weight"] = 3.0
    found = opened(made | {"mix": {"by": "weight", "rows": 20}}).order(5)
    whole = found.at(0, 200)
    for start in (0, 19, 20, 61, 199):
        assert found.at(start, 200).tolist() == whole[start:].tolist()
    far_ones = whole[whole < 60]
    assert len(far_ones) == 150
    assert sorted(far_ones[:60]) == list(range(60))  # each once before one comes again
    for epoch in whole.reshape(10, 20):
        assert sum(row >= 60 for row in epoch) == 5
        assert [row >= 60 for row in epoch] not in ([False] * 15 + [True] * 5, [True] * 5 + [False] * 15)


def test_sources_in_no_shards_keep_their_order_of_before() -> None:
    sizes = np.array([5, 9], np.int64)
    alone = Order(3, sizes, sizes)
    assert alone.at(0, 28).tolist() == Order(3, sizes, sizes, shards=None).at(0, 28).tolist()
    assert alone.at(0, 14).tolist() == Order.of(3, 14).at(0, 14).tolist()


def test_a_manifest_says_what_the_shards_hold(web: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / f"{COLOURS[1]}.png", COLOURS[1])
    write_rows(tmp_path / "rows.jsonl", [row(number, f"images/{COLOURS[1]}.png") for number in range(9)])
    near = opened({"sources": [{"path": str(tmp_path / "rows.jsonl"), "format": "llava"}]})
    build(near, near.train, tmp_path / "built", "train", size=1)
    for file in (tmp_path / "built").iterdir():
        Web.files[f"/x/{file.name}"] = file.read_bytes()
    source = {"path": f"{web}/x/train.build.json", "urls": "any", "name": "far", "format": "conversation"}
    mixture = opened({"sources": [source]})
    assert len(mixture.train) == 9
    assert sum(".tar" in path for path in Web.asked) == 0
    turns = [mixture.conversation(pair).turns for pair in mixture.train]
    theirs = [near.conversation(pair).turns for pair in near.train]
    assert [[turn.text for turn in one] for one in turns] == [[turn.text for turn in one] for one in theirs]
    (medium,) = turns[0][0].media
    Path(str(medium.ref).removeprefix("tar:").partition("#")[0]).unlink()  # it had to make room
    assert file_of(medium) == (tmp_path / "images" / f"{COLOURS[1]}.png").read_bytes()


def test_a_limit_smaller_than_what_is_read_at_a_time_loses_nothing(far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = reopened(far)
    monkeypatch.setenv(LIMIT, str(2 * len(Web.files["/s-00.tar"])))
    rows = mixture.order(0).at(0, 60)
    assert answers(mixture, rows) == [str(row) for row in rows]
    assert len(list(folder().glob("[!.]*.tar"))) <= 3


def test_a_shard_that_is_cut_off_loses_what_is_cut_off(far: str) -> None:
    Web.files["/s-02.tar"] = Web.files["/s-02.tar"][: 2 * 1024 + 520]
    mixture = opened(recipe(far))
    fates: list[str] = []
    for pair in mixture.train:
        try:
            fates.append(mixture.conversation(pair).turns[1].text)
        except DataError as error:
            fates.append(str(error))
    lost = [fate for fate in fates if not fate.isdecimal()]
    assert len(lost) == 1
    assert "cut off" in lost[0]
    assert len(fates) == 58  # of two rows not even the name came


def test_a_shard_of_another_size_than_was_counted_is_refused(far: str) -> None:
    opened(recipe(far))
    path = place(far.replace("{00..11}", "03"))
    path.unlink()
    Web.files["/s-03.tar"] = tar({"0": said(0)})
    streams._opened.cache_clear()
    mixture = opened(recipe(far))
    assert len(mixture.train) == 60
    with pytest.raises(DataError, match="changed since it was fetched first"):
        mixture.conversation(mixture.train[17])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"join": "shared_prefix"}, "`join` reads each row"),
        ({"validation": {"fraction": 0.1}}, r"`validation\.fraction` reads each row"),
        ({"where": {"output": ["1"]}}, "`where` isn't"),
    ],
)
def test_what_would_fetch_all_shards_first_is_refused(far: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(recipe(far, **more))


def test_some_rows_or_a_source_may_be_chosen_of_shards(far: str) -> None:
    assert len(opened(recipe(far, limit=7)).train) == 7
    assert opened(recipe(far, cap=11)).epoch == 11


def test_braces_that_are_not_closed_are_said(web: str) -> None:
    with pytest.raises(ConfigError, match=r"write e\.g\. train-\{000000"):
        opened(recipe(f"{web}/s-{{00..11.tar"))


def test_a_shard_that_is_gone_is_said_with_its_name(far: str) -> None:
    del Web.files["/s-07.tar"]
    with pytest.raises(ConfigError, match=r"s-07\.tar: the server answers 404"):
        opened(recipe(far))
