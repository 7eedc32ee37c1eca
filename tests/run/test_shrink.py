"""Rows that are too long by their pictures are trained on with these read smaller, from config to checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionModel

from mmsft.assistant import ask
from mmsft.modalities import Clip
from mmsft.modalities.image import SIDE
from mmsft.run import Run, open_run
from mmsft.run.audit import audit
from mmsft.run.check import check
from mmsft.types import Grid, Media, MediaGroup
from tests.makers import COLOURS, Lab, finish, lines, losses, picture, saved, write_rows
from tests.model.tiny import clip_config

TOKENS = 64
"""Of a picture as it is."""


def row(number: int, pictures: int, words: int = 1) -> dict[str, Any]:
    names = [COLOURS[(number + each) % len(COLOURS)] for each in range(pictures)]
    return {
        "images": [f"images/{name}.png" for name in names],
        "messages": [
            {"role": "user", "content": "<image>" * pictures + "Which" + " please" * words + "?"},
            {"role": "assistant", "content": names[0] if names else "none"},
        ],
    }


def lab_of(folder: Path, rows: Sequence[dict[str, Any]]) -> Lab:
    """Its pictures are 8 × 8 features."""
    lab = Lab.make(folder)
    config = clip_config()
    config.image_size = 32
    torch.manual_seed(3)
    CLIPVisionModel(config).save_pretrained(folder / "clip")
    for colour in COLOURS:
        picture(folder / "images" / f"{colour}.png", colour)
    write_rows(folder / "rows.jsonl", rows)
    return lab


def run_of(lab: Lab, out: str = "a", length: int = 170, adapter: Any = None, tower: Any = None, **changes: Any) -> Run:
    recipe = lab.recipe(length=length, **{"too_long": "shrink", **changes.pop("recipe", {})})
    recipe["sources"][0] |= {"format": "messages", "tags": []}
    stage = lab.stage(
        recipe=recipe,
        micro_batch=f"{length} tokens",
        batch="3 examples",
        train={"towers.image.adapter": {"lr": 1e-2}, "decoder.lora": {"lr": 1e-2}},
        duration="2 epochs",
    )
    model = lab.model()
    model["towers"]["image"]["modality"] |= tower or {}
    model["towers"]["image"]["adapter"] |= adapter or {}
    return lab.run(out, [stage], model=model, **changes)


MIXED = [row(0, 1), row(1, 3), row(2, 0), row(3, 2), row(4, 4), row(5, 3)]
"""With 170 tokens, those of three and four pictures are too long."""


def test_rows_of_many_pictures_are_trained_on_with_smaller_ones_and_the_ledger_has_the_sizes(tmp_path: Path) -> None:
    run = run_of(lab_of(tmp_path, MIXED))
    steps = finish(run)
    assert [step.data.used for step in steps] == [3] * 4
    assert steps[-1].loss < steps[0].loss
    assert saved(run.folder)[-1].ledger == {"rows": {"used": 6, "trimmed": 6}}
    told = {entry["row"]: entry for entry in lines(run.folder / "ledger.jsonl")}
    assert set(told) == {"rows.jsonl:2", "rows.jsonl:5", "rows.jsonl:6"}
    assert {entry["fate"] for entry in told.values()} == {"trimmed"}
    assert told["rows.jsonl:5"]["reason"].startswith("4 of its media are read smaller, 256 → 64 tokens, <image: ")
    [stage] = run.config.stages
    mixture = run.mixture(stage.recipe)
    read = run.encoding(stage).read(mixture, mixture.train)
    assert [[len(placed.slots) for placed in encoded.media] for encoded in read.rows.values()] == [
        [TOKENS], [16] * 3, [], [TOKENS] * 2, [16] * 4, [16] * 3,
    ]  # fmt: skip


def test_a_smaller_reading_is_the_mean_of_the_features_and_is_stored_as_such(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, MIXED)
    plain = run_of(lab, "plain", features=None)
    finish(plain)
    for out in ("cold", "warm"):
        run = run_of(lab, out)
        finish(run)
        for (*step, loss), (*other, expected) in zip(losses(run.folder), losses(plain.folder), strict=True):
            assert step == other
            assert loss == pytest.approx(expected, rel=1e-5)  # fp32: pictures are encoded one by one
    [media] = [line["media"]["image"] for line in lines(tmp_path / "warm" / "log.jsonl") if "media" in line]
    assert media["encoded"] == 0 < media["read"]

    model = run.model().eval()
    file = tmp_path / "images" / "red.png"
    whole, small = Media("image", str(file)), Media("image", str(file), ((SIDE, 2),))
    assert run.reader.grid(small) == Grid(1, 4, 4, of=Grid(1, 8, 8))
    tower: Any = model.towers["image"]
    with torch.no_grad():
        features = tower.encoder({"pixels": run.reader.load(whole)["pixels"][None]}).values
        means = features.view(1, 4, 2, 4, 2, -1).mean((2, 4)).flatten(1, 2)
        expected = tower.adapter.layers(means)
        encoded = run.reader.load(small)["pixels"][None]
        found = tower(MediaGroup({"pixels": encoded}, run.reader.grid(small), (small,)))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)  # fp32 sums in another order


def test_what_does_not_fit_at_its_smallest_is_dropped_with_the_reason(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, [*MIXED[:4], row(6, 2, words=30)])
    run = run_of(lab, recipe={"budget": 0.5})
    finish(run)
    assert saved(run.folder)[-1].ledger == {"rows": {"used": 6, "trimmed": 2, "dropped": 2}}
    [reason] = {entry["reason"] for entry in lines(run.folder / "ledger.jsonl") if entry["fate"] == "dropped"}
    assert "with its media read as small as they can be it has" in reason


@pytest.mark.parametrize(
    ("tower", "adapter"), [({"cls": True}, {}), ({}, {"pool": 2})], ids=["a class token", "tokens of any features"]
)
def test_where_nothing_can_shrink_check_says_so_and_rows_are_dropped(tmp_path: Path, tower: Any, adapter: Any) -> None:
    lab = lab_of(tmp_path, MIXED if tower else [row(number, 3 + 9 * number) for number in range(6)])
    run = run_of(lab, tower=tower, adapter=adapter, recipe={"budget": 0.9})
    report = check(run)
    assert any("too_long: shrink, and no image medium can be read to fewer tokens" in it for it in report.problems)
    dropped = [reason for reason in audit(run).stages[0].outcome.trained.reasons if reason.fate == "dropped"]
    assert dropped
    assert all("its image media can't be read smaller" in reason.first for reason in dropped)


def test_check_says_what_shrinks_and_refuses_it_without_a_tower(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, MIXED)
    notes = check(run_of(lab)).notes
    assert "stage align: 10 media of 3 rows are read smaller: these are too long" in notes
    run = run_of(lab, "text")
    assert check(run).ok
    recipe = run.config.stages[0].recipe.model_dump(mode="json")
    stage = lab.stage(recipe=recipe, train={"decoder": {"lr": 1e-3}}, micro_batch=None)
    assert any("the model has no tower" in it for it in check(lab.run("b", [stage], model=lab.text_model())).problems)


def test_a_pooling_adapter_shrinks_where_its_features_become_fewer_than_it_asks_for(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, MIXED)
    reader = run_of(lab, adapter={"pool": 4}).reader
    readings = reader.readings(Media("image", str(tmp_path / "images" / "red.png")))
    # Half as many features a side are still those 4 × 4.
    assert [(reading.tokens, dict(reading.media.options)) for reading in readings] == [
        (16, {}), (9, {SIDE: 3}), (4, {SIDE: 4}),
    ]  # fmt: skip


def test_a_trained_model_is_asked_about_more_pictures_than_fit_as_they_are(tmp_path: Path) -> None:
    run = run_of(lab_of(tmp_path, MIXED))
    finish(run)
    pictures = [Media("image", str(tmp_path / "images" / f"{name}.png")) for name in COLOURS[:4]]
    assistant = open_run(run.folder)
    prompt = assistant.encoder.prompt(ask("Which?", pictures))
    assert [len(placed.slots) for placed in prompt.media] == [16] * 4
    assert len(assistant.answers([ask("Which?", pictures)], max_new_tokens=2)) == 1


def test_a_clip_offers_squares_of_features_and_none_twice() -> None:
    # The grid follows from the frame alone: no file is read.
    class Fixed(Clip):
        def frame(self) -> Any:
            return type("Frame", (), {"grid": Grid(1, 24, 24)})

    spec = Fixed("none")
    assert spec.smaller(b"", {}) == [{SIDE: 2}, {SIDE: 3}, {SIDE: 4}]
    assert spec.smaller(b"", {SIDE: 3, "start": 1}) == [{SIDE: 4, "start": 1}]
