"""The assets are what they were said to be: published rows and weights, each medium where a row says."""

import collections
import hashlib
import json

import pytest

from mmsft import assets
from tests.makers import fetched, lines


@pytest.mark.assets
def test_easy_vqa_has_its_published_rows_each_with_type_and_picture() -> None:
    folder = fetched("easy-vqa")
    for split, count in {"train": 38575, "test": 9673}.items():
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]
        assert len({row["id"] for row in rows}) == len(rows) == count
        pictures = {file.name for file in (folder / split / "images").iterdir()}
        assert {row["image"].removeprefix(f"{split}/images/") for row in rows} <= pictures
        answers: dict[str, set[str]] = collections.defaultdict(set)
        for row in rows:
            answers[row["type"]].add(row["conversations"][1]["value"])
        # The 13 answers fall apart into the three types: none is of two.
        assert answers["shape"] == assets.SHAPES
        assert answers["yesno"] == {"yes", "no"}
        assert answers["color"] == assets.COLOURS


@pytest.mark.assets
def test_easy_vqa_in_words_names_what_each_picture_shows_and_no_test_picture() -> None:
    folder = fetched("easy-vqa")
    pictured = {row["id"]: row for row in map(json.loads, (folder / "train.jsonl").open(encoding="utf-8"))}
    told = [json.loads(line) for line in (folder / "words.jsonl").open(encoding="utf-8")]
    assert len({row["id"] for row in told}) == len(told) == 31914
    for row in told:
        original = pictured[row["id"].removesuffix("-words")]
        colour, shape = row["conversations"][0]["value"].splitlines()[0].split()
        assert colour in assets.COLOURS
        assert shape in assets.SHAPES
        assert "image" not in row
        assert row["conversations"][1] == original["conversations"][1]
        if row["type"] != "yesno":
            assert row["conversations"][1]["value"] == (colour if row["type"] == "color" else shape)
        elif row["conversations"][0]["value"].endswith(
            (f"a {shape}?", f"a {shape} in the image?", f"a {colour} shape?")
        ):
            assert row["conversations"][1]["value"] == ("no" if " not " in row["conversations"][0]["value"] else "yes")


@pytest.mark.assets
def test_the_language_model_is_the_published_file() -> None:
    with (fetched("smollm2-135m-instruct") / "SmolLM2-135M-Instruct.Q4_1.gguf").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest().startswith("b179c9523d0e6a0f")


@pytest.mark.assets
def test_the_vision_weights_load_strictly_into_timm() -> None:
    import timm
    from safetensors.torch import load_file

    weights = load_file(fetched("efficientnet-lite0") / f"{assets.TIMM_LITE0}.safetensors")
    timm.create_model(assets.TIMM_LITE0, pretrained=False).load_state_dict(weights, strict=True)
    assert weights["conv_stem.weight"].shape == (32, 3, 3, 3)


@pytest.mark.assets
def test_the_text_data_is_there() -> None:
    rows = json.loads((fetched("llamafactory-data") / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    assert {"instruction", "input", "output"} <= set(rows[0])


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("emoji", "names.jsonl", 52808),
        ("emoji", "words.jsonl", 1886),
        ("emoji", "grids.jsonl", 4000),
        ("phone-prompts", "prompts.jsonl", 3937),
        ("librivox", "sentences.jsonl", 5),
        ("photos", "questions.jsonl", 24),
        ("clips", "questions.jsonl", 8),
        ("stamps", "sentences.jsonl", 14063),
        ("stamps", "voices.jsonl", 6137),
        ("furniture", "furniture.jsonl", 3280),
    ],
)
def test_each_row_has_a_name_of_its_own_an_answer_and_its_media(name: str, file: str, count: int) -> None:
    folder = fetched(name)
    rows = lines(folder / file)
    assert len({row["id"] for row in rows}) == len(rows) == count
    assert all(row["conversations"][1]["value"].strip() for row in rows)
    columns = [{**row, **row.get("media", {})} for row in rows]
    named = {row[kind] for row in columns for kind in ("image", "audio", "video", "points") if kind in row}
    assert named
    assert [path for path in named if not (folder / path).is_file()] == []
