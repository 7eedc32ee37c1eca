import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import GPTJConfig, GPTJForCausalLM

from mmsft.cli import main
from mmsft.errors import ConfigError, DataError
from mmsft.run import counts
from mmsft.run.doctor import doctor
from mmsft.run.examination import SUSPECTS
from mmsft.run.invariance import Check
from mmsft.train import checkpoint
from mmsft.types import Pack
from tests.data.conftest import byte_level
from tests.makers import Lab, row, write_rows
from tests.model.seq2seq import FAMILIES, folder
from tests.run.examined import BOTH, Patch, failing, seeing_to, siblings_too, skipped, text_only, told, with_media

# What is sound


def test_a_sound_run_with_media_passes_every_proof(lab: Lab) -> None:
    report = doctor(with_media(lab, precision="bf16"))
    assert report.failed == []
    assert skipped(report) == set()
    assert [proof.name for proof in report.proofs] == list(SUSPECTS)
    assert all(check.ok for proof in report.proofs for check in proof.checks)
    assert not (lab.folder / "a").exists()


def test_a_sound_run_on_text_passes(lab: Lab) -> None:
    report = doctor(text_only(lab))
    assert (report.failed, skipped(report)) == ([], {"towers", "text row", "autocast"})


def test_a_family_that_takes_no_packs_is_examined_in_padded_threads(lab: Lab) -> None:
    config = GPTJConfig(vocab_size=len(byte_level().hf), n_embd=16, n_layer=2, n_head=2, rotary_dim=4, n_positions=256)
    torch.manual_seed(0)
    GPTJForCausalLM(config).save_pretrained(lab.folder / "decoder")
    report = doctor(with_media(lab))
    assert (report.failed, skipped(report)) == ([], {"packing", "trees", "autocast"})
    assert "its threads are padded" in report.text()


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_decoders_pass(lab: Lab, family: str) -> None:
    folder(lab.folder / "decoder", family)
    stage = lab.stage(recipe=lab.recipe(template="plain"), train={"decoder": {"lr": 1e-3}})
    report = doctor(lab.run("a", [stage], model=lab.model(lora=None)))
    assert (report.failed, skipped(report)) == ([], {"packing", "left padding", "autocast"})


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "bf16"), ("float16", "fp32")])
def test_a_decoder_held_in_16_bits_is_examined_in_fp32(lab: Lab, dtype: str, precision: str) -> None:
    stage = lab.stage(train=BOTH)
    report = doctor(lab.run("a", [stage], precision=precision, model=lab.model(dtype=dtype)))
    assert report.failed == []
    [packing] = [proof for proof in report.proofs if proof.name == "packing"]
    assert [(check.what, check.bound) for check in packing.checks[:2]] == [("loss", 1e-5), ("gradient", 1e-3)]
    assert f"held in {dtype}, is examined in float32" in report.notes[-1]


@pytest.mark.parametrize("fault", ["a neighbour is seen", "a sibling is seen", "positions"])
def test_a_fault_beside_a_decoder_held_in_bf16_is_found(lab: Lab, monkeypatch: Patch, fault: str) -> None:
    write_rows(lab.folder / "rows.jsonl", [row(number, "images/red.png") for number in range(12)])
    if fault == "positions":
        told(monkeypatch, lambda batch, inputs: inputs | {"position_ids": batch.positions + (batch.positions > 5)})
    else:
        all_of_it: Callable[[Pack], Tensor] = lambda pack: torch.full_like(pack.until, len(pack.until))  # noqa: E731
        seeing_to(monkeypatch, siblings_too if fault == "a sibling is seen" else all_of_it)
    stage = lab.stage(recipe=lab.recipe(join="shared_prefix"), train=BOTH)
    report = doctor(lab.run("a", [stage], precision="bf16", model=lab.model(dtype="bfloat16")))
    assert failing(report)[0] == ("logits" if fault == "positions" else "trees")


@pytest.mark.parametrize("learn", ["completion", "all", "span"])
@pytest.mark.parametrize("template", ["chatml", "vicuna", "alpaca", "hash", "plain"])
def test_targets_are_found_right_however_they_are_learned(lab: Lab, learn: str, template: str) -> None:
    say = "Red, I think.\n\nOr so.<answer> It is red " if learn == "span" else "  It is red\n\nor blue "
    turns = [
        {"from": who, "value": text} for who, text in (("human", "A?"), ("gpt", say), ("human", "B?"), ("gpt", say))
    ]
    write_rows(lab.folder / "text.jsonl", [{"conversations": turns}, {"conversations": turns[:2]}] * 2)
    stage = lab.stage(
        recipe=lab.recipe("text.jsonl", learn=learn, template=template, length=400), micro_batch="400 tokens"
    )
    run = lab.run("a", [stage | {"train": {"decoder": {"lr": 1e-3}}}], model=lab.text_model())
    [mixture] = [run.mixture(run.config.stages[0].recipe)]
    conversations = [mixture.conversation(pair) for pair in mixture.train]
    work = run.encoding(run.config.stages[0])
    [batch] = replace(work, micro_tokens=4000).batches([work.encoder.encode(one) for one in conversations], {})
    checks = list(counts.targets(work.encoder, conversations, {"a pack": batch}))
    assert len(checks) >= 3
    assert all(check.ok and check.reference > 0 for check in checks), [check.text() for check in checks]


def test_rows_that_the_recipe_joins_are_examined_joined(lab: Lab) -> None:
    pictures = [row(number, f"images/{colour}.png") for number, colour in enumerate(["red", "red", "red", "blue"])]
    write_rows(lab.folder / "rows.jsonl", pictures)
    report = doctor(lab.run("a", [lab.stage(recipe=lab.recipe(join="shared_prefix"), train=BOTH)]))
    assert report.failed == []


def test_rows_that_all_begin_alike_are_divided_where_their_threads_can_be(lab: Lab) -> None:
    asked = {"from": "human", "value": "<image>\nwhat is it?"}
    said = ({"from": "gpt", "value": f"a number {number} in red"} for number in range(6))
    rows = [{"image": "images/red.png", "conversations": [asked, answer]} for answer in said]
    write_rows(lab.folder / "rows.jsonl", rows)
    report = doctor(lab.run("a", [lab.stage(recipe=lab.recipe(join="shared_prefix"), train=BOTH)]))
    assert report.failed == []
    assert not skipped(report) & {"accumulation", "batch split", "ranks"}


def test_a_decoder_that_cannot_learn_as_it_is_held_is_refused_as_training_refuses_it(lab: Lab) -> None:
    stage = lab.stage(train={"decoder": {"lr": 1e-3}})
    model = lab.model(lora=None, dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"decoder\..* can't learn \(model\.decoder\.dtype: bfloat16\)"):
        doctor(lab.run("a", [stage], precision="bf16", model=model))


def test_what_a_single_row_cannot_show_is_skipped_with_the_reason(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", [row(1, "images/red.png")])
    report = doctor(with_media(lab))
    assert report.failed == []
    several = {"trees", "padding", "left padding", "accumulation", "batch split", "ranks"}
    assert skipped(report) == several | {"autocast"}
    assert "1 row of 37 tokens can't be divided" in report.text()


def test_an_encoder_decoder_is_examined_with_a_prompt_that_has_two_replies(lab: Lab) -> None:
    folder(lab.folder / "decoder", FAMILIES[0])
    write_rows(lab.folder / "rows.jsonl", [row(number, "images/red.png") for number in (1, 2)])
    stage = lab.stage(recipe=lab.recipe(template="plain"), train={"decoder": {"lr": 1e-3}})
    report = doctor(lab.run("a", [stage], model=lab.model(lora=None)))
    [trees] = [proof for proof in report.proofs if proof.name == "trees"]
    found = re.search(r"\((\d+) → (\d+) tokens\)", trees.what)
    assert found
    assert int(found[1]) > int(found[2])
    assert [check.ok for check in trees.checks] == [True, True]


def test_the_rows_are_named_and_those_that_fail_are_told(lab: Lab) -> None:
    rows = lab.rows(6)
    write_rows(lab.folder / "rows.jsonl", [{"a": 1}, *rows])
    report = doctor(with_media(lab))
    assert report.failed == []
    _, named, lost = report.notes
    assert sorted(named.removeprefix("  rows: ").split(", ")) == [f"rows.jsonl:{line}" for line in (3, 4, 6, 7)]
    assert lost.startswith("  1 row beside them can't be learned from, see `mmsft check`: rows.jsonl:1: ")


def test_stages_that_differ_in_nothing_are_examined_once(lab: Lab) -> None:
    report = doctor(
        lab.run("a", [lab.stage("one"), lab.stage("two", duration="9 steps"), lab.stage("three", train=BOTH)])
    )
    assert list(dict.fromkeys(proof.stage for proof in report.proofs)) == ["one", "three"]
    assert "stage two: its rows and what learns are those of stage one" in report.notes
    assert skipped(report) == {"autocast"}  # the later stage is examined in packs, too


def test_the_command_prints_one_json_object_or_lines(
    lab: Lab, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    text_only(lab)

    def command(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmsft", "doctor", str(lab.folder / "text.yaml"), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    code, out = command("--json")
    told = json.loads(out)
    assert (code, told["ok"], [proof["name"] for proof in told["proofs"]]) == (0, True, list(SUSPECTS))
    assert all(set(check) >= {"reference", "variant", "difference", "bound"} for check in told["proofs"][0]["checks"])

    code, out = command()
    assert (code, out.count("  pass  "), out.count("  skip  ")) == (0, len(SUSPECTS) - 3, 3)
    assert re.search(r"^12 proofs hold, 3 skipped, in \d+ s$", out.splitlines()[-1])

    monkeypatch.setattr(checkpoint, "restore_weights", lambda path, model: set())
    code, out = command()
    assert (code, out.count("  FAIL  saved and loaded")) == (1, 1)
    assert command("stages.sft.train.decoder.lr=x")[0] == 2


def test_numbers_that_are_not_finite_fail() -> None:
    assert not Check("loss", 1.0, float("nan"), float("nan"), 1e-5).ok
    assert not Check("loss", 1.0, float("inf"), float("inf"), 1e-5).ok


def test_rows_of_which_none_can_be_learned_from_are_an_error(lab: Lab) -> None:
    write_rows(lab.folder / "rows.jsonl", [{"a": 1}] * 3)
    with pytest.raises(
        DataError,
        match=r"stage align: none of its first 3 rows can be learned from \(rows.jsonl:\d: .+\); see `mmsft check`",
    ):
        doctor(lab.run("a"))
