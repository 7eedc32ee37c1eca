"""A run with the store of features: warm is cold to the bit, and neither decodes nor encodes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmsft.errors import MmsftError
from mmsft.modalities import Clip
from mmsft.model.tower import Tower
from mmsft.run import execute
from mmsft.run.summary import summary
from tests.makers import Lab, finish, lines, losses, picture, weights

Patch = pytest.MonkeyPatch


def media(folder: Path) -> list[dict[str, Any]]:
    return [line["media"]["image"] for line in lines(folder / "log.jsonl") if line.get("media")]


def encodings(monkeypatch: Patch) -> list[int]:
    """Notes how many media each call of an encoder has."""
    real, noted = Tower._encoded, []

    def note(self: Tower, tensors: Any) -> Any:
        noted.append(len(tensors["pixels"]))
        return real(self, tensors)

    monkeypatch.setattr(Tower, "_encoded", note)
    return noted


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_warm_run_neither_decodes_nor_encodes_and_is_the_cold_one_to_the_bit(
    lab: Lab, monkeypatch: Patch, precision: str
) -> None:
    finish(lab.run("cold", precision=precision))
    noted = encodings(monkeypatch)

    def refuse(*args: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(Clip, "load", refuse)
    warm = lab.run("warm", precision=precision)
    finish(warm)
    assert weights(lab.folder / "warm") == weights(lab.folder / "cold")
    assert losses(lab.folder / "warm") == losses(lab.folder / "cold")
    assert noted == []
    assert media(lab.folder / "warm")[0]["encoded"] == 0 < media(lab.folder / "warm")[0]["read"]
    assert f"{media(lab.folder / 'warm')[0]['read']} from the store, 0 encoded" in summary(warm)


def test_a_half_warm_run_is_the_cold_one_to_the_bit_with_workers_too(lab: Lab) -> None:
    finish(lab.run("cold"))
    kept = sorted((lab.folder / "features").rglob("*.safetensors"))
    assert len(kept) > 3
    for file in kept[::2]:
        file.unlink()
    finish(lab.run("half", workers=2))
    assert weights(lab.folder / "half") == weights(lab.folder / "cold")
    assert sorted((lab.folder / "features").rglob("*.safetensors")) == kept


def test_each_distinct_medium_is_encoded_alone_and_within_rounding_of_a_batch(lab: Lab, monkeypatch: Patch) -> None:
    without = finish(lab.run("without", features=None))
    noted = encodings(monkeypatch)
    steps = finish(lab.run("a"))
    assert set(noted) == {1}
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in without], rel=1e-5)  # fp32 rounding
    assert not media(lab.folder / "without")


def test_an_encoder_that_learns_bypasses_the_store_and_its_new_weights_are_another_encoder(lab: Lab) -> None:
    learning = lab.stage("whole", train={"towers.image": {"lr": 1e-2}})
    run = lab.run("a", [lab.stage("first"), learning, lab.stage("last", duration="2 steps")])
    text = run.describe()
    assert text.count("encoded once, then from the store") == 2
    assert "encoded at each use: its encoder learns" in text
    finish(run)
    counts = {line["name"]: line["media"] for line in lines(lab.folder / "a" / "log.jsonl") if "media" in line}
    assert set(counts) == {"first", "last"}
    assert counts["first"]["image"]["encoded"]
    assert counts["last"]["image"]["encoded"]
    assert len(list((lab.folder / "features").glob("*/encoder.json"))) == 2


def test_media_that_are_read_differently_each_time_are_not_stored(lab: Lab, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Clip, "augments", lambda self: True)
    run = lab.run("a")
    assert "its media are read differently each time" in run.describe()
    finish(run)
    assert not (lab.folder / "features").exists()


def test_a_picture_that_changes_is_read_anew(lab: Lab) -> None:
    finish(lab.run("before"))
    for file in sorted((lab.folder / "images").glob("*.png")):
        picture(file, "white", side=9)
    finish(lab.run("after"))
    shutil.rmtree(lab.folder / "features")
    finish(lab.run("again"))
    assert weights(lab.folder / "after") == weights(lab.folder / "again") != weights(lab.folder / "before")


def test_a_store_that_cannot_be_written_stops_no_training(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    (lab.folder / "features").write_text("in the way")
    finish(lab.run("a"))
    assert "can't be written to" in caplog.text
    finish(lab.run("b", features={"folder": str(lab.folder / "elsewhere")}))
    assert weights(lab.folder / "a") == weights(lab.folder / "b")


def test_a_broken_picture_is_lost_with_the_store_as_without(lab: Lab) -> None:
    for name in ("red", "green"):
        (lab.folder / "images" / f"{name}.png").write_bytes(b"no picture")
    Image.new("RGB", (3, 3)).save(lab.folder / "images" / "blue.png")
    recipe = lab.recipe(budget=1.0)
    stage = lab.stage(recipe=recipe, duration="1 epoch")
    for out, features in (("with", {"folder": str(lab.folder / "features")}), ("without", None)):
        finish(lab.run(out, [stage], features=features))
    found = [
        [(line["row"], line["fate"]) for line in lines(lab.folder / out / "ledger.jsonl")]
        for out in ("with", "without")
    ]
    assert found[0] == found[1] != []


def test_a_run_that_is_stopped_leaves_what_it_encoded(lab: Lab) -> None:
    run = execute(lab.run("a", save={"every": "1 step"}))
    next(run)
    run.close()
    assert list((lab.folder / "features").rglob("*.safetensors"))


@pytest.mark.parametrize("limit", ["0 GB", "many", True])
def test_a_limit_that_is_no_size_is_refused(lab: Lab, limit: Any) -> None:
    with pytest.raises(MmsftError, match="limit"):
        lab.run("a", features={"limit": limit})
