"""A modality of one's own learns, is asked, saved and loaded like those that ship."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import examples.tactile
import mmsft
from examples.tactile import Tactile
from mmsft import Assistant, Conversation, DataError, Features, Grid, Media, Run
from mmsft.assistant import located, swap_media
from mmsft.data.encoding import Encoding
from mmsft.data.media_reader import Loaded
from mmsft.eval.accuracy import accuracy
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.objectives import sft
from mmsft.run.open import held_out
from mmsft.types import Encoded
from tests.examples.pages import blocks, enter
from tests.makers import write_rows

QUESTION = "Which finger pressed?"


def text_of_the_page(file: str) -> str:
    [text] = [block.text for block in blocks("adding-a-modality.md") if block.file == file]
    return text


def config_of_the_page(**stage: Any) -> Path:
    """Writes the page's config into the working directory, the stage changed."""
    config = yaml.safe_load(text_of_the_page("touch.yaml"))
    config |= {"precision": "fp32", "workers": 0}
    config["stages"][0] |= stage
    path = Path("touch.yaml")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def config_of(rows: str | Path) -> Path:
    """Writes the page's config for other rows; files lie beside them."""
    recipe = {"sources": [{"path": str(rows), "format": "messages"}], "template": "chatml"}
    return config_of_the_page(recipe=recipe, batch="5 examples", duration="2 epochs")


def test_encoder_and_projector_learn_to_feel(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A random decoder can't write the answers yet, so it learns too.
    learns = {"towers.tactile": {"lr": 1e-2}, "decoder": {"lr": 1e-2}, "decoder.lora": {"lr": 1e-2}}
    exec(compile(text_of_the_page("record.py"), "record.py", "exec"), {})
    run = mmsft.load_run(config_of_the_page(train=learns))
    before = {name: value.detach().clone() for name, value in named_parameters(run.model()).items()}
    events = list(mmsft.execute(run))
    steps, assistant = [step.loss for _, step, _ in events], events[-1][2]
    assert mean(steps[-10:]) < 0.3 * mean(steps[:10])
    after = named_parameters(assistant.model)
    for part in ("towers.tactile.encoder.", "towers.tactile.adapter."):
        assert all(not torch.equal(before[name], after[name]) for name in after if name.startswith(part))

    questions = held_out(run, "last", 60).rows
    feels = score(assistant, questions)
    # Four fingers are equally likely, so that what doesn't feel is right in a quarter of the cases.
    assert feels > 0.8
    assert score(assistant.blind(), questions) < feels - 0.3
    assert score(assistant, swap_media(questions, seed=0)) < feels - 0.3

    opened = mmsft.open_run(run.folder)
    asked = [mmsft.ask(QUESTION, [Media("tactile", f"touches/{number}.npy")]) for number in range(8)]
    answers = assistant.answers(asked)
    assert opened.answers(asked) == answers
    capsys.readouterr()
    enter(f"mmsft chat runs/touch '{QUESTION}' --media tactile=touches/3.npy", monkeypatch)
    assert capsys.readouterr().out.strip() == answers[3] == mmsft.generate(opened, asked[3])


def score(assistant: Assistant, questions: Sequence[Conversation]) -> float:
    return accuracy(assistant, questions, max_new_tokens=12).accuracy


def talk(question: str, answer: str, *touches: str) -> dict[str, Any]:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said, "media": {"tactile": list(touches)}}


def touch(name: str, steps: int, cells: int = 16) -> str:
    np.save(name, np.random.default_rng(steps).normal(size=(steps, cells)).astype(np.float32))
    return name


def mixed_run() -> Run:
    short, long = touch("short.npy", 9), touch("long.npy", 30)
    rows = [
        talk("<tactile> Which?", "ring", short),
        talk("<tactile> Which?", "thumb", long),
        talk("Who are you?", "nobody"),
        talk("First <tactile> then <tactile> same?", "no", short, long),
        talk("First <tactile> then <tactile> same?", "no", long, short),
    ]
    return mmsft.load_run(config_of(write_rows(Path("mixed.jsonl"), rows)))


def encoded(run: Run, rows: Sequence[int]) -> tuple[Encoding, list[Encoded], Loaded]:
    stage = run.config.stages[0]
    mixture = run.mixture(stage.recipe)
    encoding = run.encoding(stage)
    read = encoding.read(mixture, mixture.train[list(rows)])
    assert not read.lost
    return encoding, list(read.rows.values()), read.loaded


def sums(run: Run, model: MultimodalModel, rows: Sequence[int]) -> tuple[float, float]:
    """Returns the loss's sum and count over rows that go through the model together."""
    encoding, read, loaded = encoded(run, rows)
    [batch] = encoding.batches(read, loaded)
    loss = sft(model, batch, 1)
    return loss.sum.item(), loss.count.item()


def test_two_lengths_text_and_two_touches_in_one_batch_are_each_what_they_are_alone(desk: Path) -> None:
    run = mixed_run()
    model = run.model().eval()
    together = sums(run, model, range(5))
    alone = [sums(run, model, [row]) for row in range(5)]
    # fp32 sums in another order
    assert together == pytest.approx([sum(column) for column in zip(*alone, strict=True)], rel=1e-5)
    assert alone[3][0] != pytest.approx(alone[4][0], rel=1e-3), "the order of two touches makes a difference"


def test_a_batch_holds_each_touch_once_and_groups_them_by_length(desk: Path) -> None:
    encoding, read, loaded = encoded(mixed_run(), range(5))
    [batch] = encoding.batches(read, loaded)
    media = batch.media["tactile"]
    assert {(len(group.keys), group.grid.count, group.tensors["pressure"].shape[1]) for group in media.groups} == {
        (1, 3, 9),
        (1, 8, 30),
    }
    assert len(media.uses) == 6
    assert len(media.slots) == 3 * (3 + 8)


def test_training_takes_mixed_rows(desk: Path) -> None:
    assert all(step.loss > 0 and step.data.used == 5 for _, step, _ in mmsft.execute(mixed_run()))


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8, 39])
def test_probe_counts_what_the_encoder_gives_also_for_a_blank(steps: int, tmp_path: Path) -> None:
    tactile, file = Tactile(), Path(touch(str(tmp_path / "a.npy"), steps))
    encoder, grid = tactile.encoder(), tactile.probe(file, {})
    for item in (tactile.load(file, {}), tactile.blank(grid)):
        assert encoder(tactile.collate([item])).values.shape == (1, grid.count, 64)


def test_a_touch_inside_its_row_is_the_one_in_the_file(tmp_path: Path) -> None:
    file = Path(touch(str(tmp_path / "a.npy"), 7))
    data = file.read_bytes()
    assert Tactile().probe(data, {}) == Tactile().probe(file, {}) == Grid(2, 1, 1)
    assert torch.equal(Tactile().load(data, {})["pressure"], Tactile().load(file, {})["pressure"])


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


BROKEN = {
    "empty": (b"", "EOFError"),
    "other": (b"\x89PNG, not a series", "ValueError"),
    "cut": (npy(np.zeros((9, 16)))[:-8], "ValueError"),
    "pickled": (npy(np.array([[{}]], dtype=object), allow_pickle=True), "ValueError"),
    "cells": (npy(np.zeros((9, 15))), r"expected pressures \[T, 16\], got \[9, 15\]; record"),
    "flat": (npy(np.zeros(16)), r"got \[16\]"),
    "nothing": (npy(np.zeros((0, 16))), r"got \[0, 16\]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_failed_row_that_names_row_and_file(name: str, desk: Path) -> None:
    data, says = BROKEN[name]
    (desk / "broken.npy").write_bytes(data)
    write_rows(desk / "mixed.jsonl", [talk("<tactile> Which?", "ring", "broken.npy")])
    run = mmsft.load_run(config_of("mixed.jsonl"))
    stage = run.config.stages[0]
    mixture = run.mixture(stage.recipe)
    read, _, [loss] = run.encoding(stage).read(mixture, mixture.train)
    assert (read, loss.fate) == ({}, "failed")
    assert re.search(rf"^mixed\.jsonl:1: <tactile: .*broken\.npy>: .*{says}", loss.reason)


def test_long_touches_are_read_at_a_lower_rate_where_the_modality_offers_it(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(desk)
    (desk / "coarse.py").write_text(text_of_the_page("coarse.py"), encoding="utf-8")
    mixed_run()
    more = ["model.towers.tactile.modality.kind=coarse:Coarse", "stages.touch.recipe.too_long=shrink"]
    run = mmsft.load_run("touch.yaml", more)
    whole = encoded(run, range(5))[1]
    lengths = [[len(placed.slots) for placed in row.media] for row in whole]
    assert lengths == [[3], [8], [], [3, 8], [8, 3]]
    run = mmsft.load_run("touch.yaml", [*more, f"stages.touch.recipe.length={len(whole[3]) - 1}"])
    encoding, read, loaded = encoded(run, range(5))
    assert [[len(placed.slots) for placed in row.media] for row in read] == [[3], [8], [], [3, 4], [4, 3]]
    [batch] = encoding.batches(read, loaded)
    touch, model = read[3].media[1].media, run.model().eval()
    tower: Any = model.towers["tactile"]
    features = tower.encoder({"pressure": run.reader.load(touch)["pressure"][None]}).values
    own = tower.adapter(Features(features.view(1, 4, 2, -1).mean(2)), Grid(4, 1, 1))
    media = batch.media["tactile"]
    first = [use.count for use in media.uses].index(4)
    start = sum(use.count for use in media.uses[:first])
    filled = model.embed(batch).flatten(0, 1)[media.slots[start : start + 4]]
    # fp32 sums in another order
    torch.testing.assert_close(filled, own[0], atol=1e-6, rtol=1e-5)
    assert [step.data.used for _, step, _ in mmsft.execute(run)] == [5, 5]


def test_a_missing_file_is_said_before_a_model_answers(desk: Path) -> None:
    run = mmsft.load_run(config_of("none.jsonl"))
    assert run.reader.modality(Media("tactile", "x.npy")) == Tactile()
    with pytest.raises(DataError, match=r"<tactile: x\.npy>: no such file"):
        located(mmsft.ask(QUESTION, [Media("tactile", "x.npy")]))


def test_a_class_in_the_working_directory_is_found_by_the_commands(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed_run()
    source = Path(examples.tactile.__file__).read_text(encoding="utf-8")
    (desk / "sensor_of_mine.py").write_text(source, encoding="utf-8")
    enter("mmsft check touch.yaml model.towers.tactile.modality.kind=sensor_of_mine:Tactile", monkeypatch)
    assert "ready to train" in capsys.readouterr().out
