import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsft.config import RecipeConfig
from mmsft.data.mixture import Mixture
from mmsft.errors import ConfigError
from mmsft.types import Conversation, Media, Record, Text, Turn
from tests.makers import Lab, opened, row, write_rows


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab.make(tmp_path_factory.mktemp("lab"), rows=60)
    write_rows(lab.folder / "more.jsonl", lab.rows(5, first=100))
    return lab


def media_of(mixture: Mixture, pairs: np.ndarray[Any, np.dtype[np.int64]]) -> set[str]:
    turns = [turn for pair in pairs for turn in mixture.conversation(pair).turns]
    return {str(medium.ref) for turn in turns for medium in turn.media}


def test_a_fraction_keeps_each_picture_on_one_side(lab: Lab) -> None:
    mixture = opened(lab.recipe(validation={"fraction": 0.4}))
    assert 0 < len(mixture.held_out) < 60
    assert media_of(mixture, mixture.train).isdisjoint(media_of(mixture, mixture.held_out))
    assert len(mixture.train) + len(mixture.held_out) == 60


def test_a_fraction_is_drawn_by_the_media_that_the_format_gives_wherever_a_row_names_them(tmp_path: Path) -> None:
    """Of the same picture, in a column or in the content's parts, rows lie on the same side."""
    rows: list[dict[str, Any]] = []
    for number in range(40):
        talk = row(number)["conversations"]
        in_column = [{**talk[0], "value": "<image> " + talk[0]["value"]}, talk[1]]
        part = {"type": "image", "image": f"{number}.png"}
        in_parts = [{**talk[0], "value": [part, {"type": "text", "text": "What?"}]}, talk[1]]
        rows += [{"image": f"{number}.png", "conversations": in_column}, {"conversations": in_parts}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    source = {"path": str(file), "format": "llava"}
    mixture = opened({"sources": [source], "template": "chatml", "validation": {"fraction": 0.5}})
    held_out = sorted(mixture.held_out[:, 1].tolist())
    assert 0 < len(held_out) < 80
    assert held_out[1::2] == [number + 1 for number in held_out[::2]]
    for index in range(80):
        (medium,) = mixture.sources[0].media(index)
        assert medium.ref == f"{index // 2}.png"


def test_a_format_of_ones_own_is_asked_for_its_media(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"photo": f"{number // 2}.png"} for number in range(40)])
    source = {"path": str(file), "format": "tests.data.test_mixture:photos"}
    mixture = opened({"sources": [source], "template": "chatml", "validation": {"fraction": 0.5}})
    held_out = sorted(mixture.held_out[:, 1].tolist())
    assert 0 < len(held_out) < 40
    assert held_out[1::2] == [number + 1 for number in held_out[::2]]


def photos(record: Record, row: str) -> Conversation:
    ask = Turn("user", (Media("image", record["photo"]), Text("What?")))
    return Conversation(row, (ask, Turn("assistant", (Text("a cat"),))))


def test_all_that_is_wrong_with_the_sources_is_told_at_once(lab: Lab) -> None:
    recipe = lab.recipe()
    source = recipe["sources"][0]
    recipe["sources"] = [
        source | {"path": str(lab.folder / "row.jsonl"), "format": "lava"},
        source | {"name": "b", "media_root": str(lab.folder / "nowhere")},
        source | {"name": "c", "where": {"kind": "tall"}},
    ]
    with pytest.raises(ConfigError) as caught:
        opened(recipe)
    for part in ("row.jsonl: no such file", "'lava'", "'b': media_root", "'c': no row is left"):
        assert str(caught.value).count(part) == 1


def test_a_fraction_follows_from_the_seed(lab: Lab) -> None:
    seeds: tuple[dict[str, int], ...] = ({}, {"seed": 0}, {"seed": 1})
    recipes = [lab.recipe(validation={"fraction": 0.4, **seed}) for seed in seeds]
    first, again, other = (opened(recipe).held_out.tolist() for recipe in recipes)
    assert first == again != other


def test_the_runs_seed_decides_nothing_about_what_is_held_out(lab: Lab) -> None:
    stage = lab.stage(recipe=lab.recipe(validation={"fraction": 0.4}))
    first, other = (lab.run(f"seed{seed}", [stage], seed=seed) for seed in (0, 1))
    held_out = [run.mixture(run.config.stages[0].recipe).held_out.tolist() for run in (first, other)]
    assert held_out[0] == held_out[1]


def test_held_out_rows_are_shuffled(lab: Lab) -> None:
    more = {"path": str(lab.folder / "more.jsonl"), "format": "llava"}
    held_out = opened(lab.recipe(validation={"file": more})).held_out[:, 1].tolist()
    assert sorted(held_out) == list(range(5)) != held_out


def test_a_fraction_far_from_what_rows_with_pictures_in_common_allow_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"photo": f"{number // 120}.png"} for number in range(1200)]
    source = {"path": str(write_rows(tmp_path / "rows.jsonl", rows)), "format": "tests.data.test_mixture:photos"}
    recipe = {"sources": [source], "template": "chatml"}
    with pytest.raises(ConfigError, match=r"holds out 0 of 1200 rows.*120 of them are connected so.*`file`"):
        opened({**recipe, "validation": {"fraction": 1e-6}})
    for seed in range(60):
        held_out = len(opened({**recipe, "validation": {"fraction": 0.5, "seed": seed}}).held_out)
        assert held_out % 120 == 0
        if held_out < 300:
            assert f"holds out {held_out} of 1200 rows" in caplog.text
            return
    pytest.fail("no seed is lopsided")


def test_a_source_or_a_file_is_held_out_whole(lab: Lab) -> None:
    more = {"path": str(lab.folder / "more.jsonl"), "format": "llava"}
    recipe = lab.recipe()
    by_source = opened({**recipe, "sources": [*recipe["sources"], more], "validation": {"source": "more.jsonl"}})
    by_file = opened({**recipe, "validation": {"file": more}})
    for mixture in (by_source, by_file):
        assert len(mixture.train) == 60
        assert {mixture.row_id(pair) for pair in mixture.held_out} == {f"more.jsonl:{n}" for n in range(1, 6)}


def test_where_and_limit_choose_rows(lab: Lab) -> None:
    recipe = lab.recipe()
    recipe["sources"][0] |= {"where": {"kind": ["short"]}, "limit": 4}
    mixture = opened(recipe)
    assert [mixture.conversation(pair).tags["kind"] for pair in mixture.train] == ["short"] * 4


@pytest.mark.parametrize(
    ("where", "message"),
    [({"kinds": "short"}, "no column 'kinds'.*did you mean 'kind'"), ({"kind": "tall"}, "first row has 'short'")],
)
def test_a_filter_that_leaves_nothing_says_why(lab: Lab, where: dict[str, str], message: str) -> None:
    recipe = lab.recipe()
    recipe["sources"][0]["where"] = where
    with pytest.raises(ConfigError, match=message):
        opened(recipe)


def test_a_fraction_that_holds_out_nothing_is_refused(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="holds out 0 of 60 rows"):
        opened(lab.recipe(validation={"fraction": 1e-6}))


def test_a_fraction_that_holds_out_everything_is_refused(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="holds out 60 of 60 rows"):
        opened(lab.recipe(validation={"fraction": 1 - 1e-9}))


def test_a_broken_row_stays_for_the_ledger(lab: Lab, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row(0), row(1)])
    file.write_bytes(file.read_bytes() + b'{"kind": "\xff"}\n{"conversations": [{"from"')
    recipe = lab.recipe(validation={"fraction": 0.5, "seed": 1})
    recipe["sources"][0] |= {"path": str(file), "where": {"kind": ["short", "long"]}}
    mixture = opened(recipe)
    assert {"rows.jsonl:3", "rows.jsonl:4"} <= {mixture.row_id(pair) for pair in mixture.train}


def joined(rows: Path, **changes: Any) -> Mixture:
    source = {"path": str(rows), "format": "llava"}
    return opened({"sources": [source], "template": "chatml", "join": "shared_prefix", **changes})


def test_rows_of_one_source_that_show_one_picture_are_a_group_of_at_most_the_limit(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row(number, f"{number % 2}.png") for number in range(140)])
    assert joined(file, join_limit=3).groups.tolist()[:8] == [0, 1, 0, 1, 0, 1, 2, 3]  # type: ignore[union-attr]
    assert np.bincount(joined(file).groups).tolist() == [64, 64, 6, 6]  # type: ignore[arg-type]


def test_pictures_of_one_name_in_two_sources_or_with_other_bytes_in_one_are_not_joined(tmp_path: Path) -> None:
    """The folders of two sources are other folders; a row of Parquet may bring its picture along under any name."""
    (tmp_path / "b").mkdir()
    files = [write_rows(tmp_path / name, [row(1, "same.png")] * 2) for name in ("same.jsonl", "b/same.jsonl")]
    both = [{"path": str(file), "format": "llava", "name": str(number)} for number, file in enumerate(files)]
    groups = opened({"sources": both, "template": "chatml", "join": "shared_prefix"}).groups
    assert groups is not None
    assert groups.tolist() == [0, 0, 1, 1]
    shown = [row(1, "same.png") | {"image": {"path": "same.png", "bytes": data}} for data in (b"cat", b"dog", b"cat")]
    pq.write_table(pa.Table.from_pylist(shown), tmp_path / "rows.parquet")
    groups = joined(tmp_path / "rows.parquet").groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 0]


def test_rows_that_can_not_be_read_are_joined_with_none(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row(1, "a.png"), row(1, "a.png")])
    file.write_text(2 * "{}\n" + file.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    groups = joined(file).groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 2, 2, 3]


def test_another_file_than_the_one_that_was_summed_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row(1)])
    sum = hashlib.sha256(file.read_bytes()).hexdigest()
    source = {"path": str(file), "sha256": sum}
    assert len(opened({"sources": [source]}).train) == 1
    write_rows(file, [row(2)])
    with pytest.raises(ConfigError, match=f"and not {sum}, as is stated: it is another file"):
        opened({"sources": [source]})
    with pytest.raises(ConfigError, match="sha256 is of a file"):
        opened({"sources": [{**source, "path": str(tmp_path)}]})


def test_a_limit_without_join_is_refused_since_it_would_limit_nothing(lab: Lab) -> None:
    for recipe in (lab.recipe(join_limit=8), lab.recipe(join_limit=8, join=None)):
        with pytest.raises(ConfigError, match=r"recipe\.join_limit: 8 limits nothing.*`join: shared_prefix`, or"):
            lab.run("limit", [lab.stage(recipe=recipe)])
    alone = lab.run("alone", [lab.stage()]).config.stages[0].recipe
    assert RecipeConfig.model_validate(alone.model_dump()).join_limit is None
