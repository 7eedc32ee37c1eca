"""An encoder–decoder goes through a whole run as any other model does."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from mmsft.assistant import ask
from mmsft.cli import main
from mmsft.data.encoding import Share
from mmsft.data.loader import StepData, Steps
from mmsft.duration import Duration
from mmsft.errors import ConfigError
from mmsft.run import execute, load_run, open_run
from mmsft.run.check import check
from mmsft.types import Media
from tests.data.test_seq2seq import batch_sides
from tests.makers import Lab, finish, lines, losses, weights, write_rows
from tests.model.seq2seq import FAMILIES, folder


def lab_of(path: Path, family: str) -> Lab:
    lab = Lab.make(path)
    folder(path / "decoder", family)
    return lab


def text_rows(lab: Lab) -> dict[str, Any]:
    """Eight prompts, three replies to each."""
    talks = [(("user", f"What is {n // 3}?"), ("assistant", f"it is {n}")) for n in range(24)]
    rows = [{"messages": [{"role": role, "content": said} for role, said in talk]} for talk in talks]
    file = write_rows(lab.folder / "text.jsonl", rows)
    return {"sources": [{"path": str(file), "format": "messages"}], "template": "plain", "length": 100}


def enter(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["mmsft", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize("family", FAMILIES)
def test_every_command_takes_an_encoder_decoder(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = lab_of(tmp_path, family)
    recipe = text_rows(lab) | {"validation": {"fraction": 0.2}}
    stage = lab.stage(recipe=recipe, train={"decoder": {"lr": 3e-3}}, evaluate={"every": "2 steps"})
    config = lab.write(lab.config("a", [stage], model=lab.text_model()))
    run = lab.folder / "a"
    for command in (
        ("check", config),
        ("data", "show", config, "--rows", 1),
        ("train", config),
        ("eval", run, "--max-new-tokens", 4),
        ("chat", run, "What is 1?", "--max-new-tokens", 4),
        ("export", run),
    ):
        assert enter(monkeypatch, *command) in (0, None), (command, capsys.readouterr())
    assert "⟦" in capsys.readouterr().out
    log = [line for line in lines(run / "log.jsonl") if "loss" in line]
    assert log[-1]["loss"] < log[0]["loss"]
    assistant = open_run(run)
    loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(run / "hf").eval()
    hf: Any = AutoTokenizer.from_pretrained(run / "hf")
    begun = torch.tensor([[loaded.config.decoder_start_token_id, *([hf.bos_token_id] if family == "bart" else [])]])
    question = [{"role": "user", "content": "What is 1?"}]
    inputs = hf.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    prompt = assistant.encoder.prompt(ask("What is 1?")).input_ids.tolist()
    assert inputs["input_ids"].tolist() == [prompt[: -begun.shape[1]]]
    loaded.generation_config.forced_eos_token_id = None
    ids = loaded.generate(**inputs, decoder_input_ids=begun, max_new_tokens=6, do_sample=False)[0, begun.shape[1] :]
    said = hf.decode(ids, skip_special_tokens=True).strip()
    assert assistant.answers([ask("What is 1?")], max_new_tokens=6) == [said]


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "t5")
    stage = lab.stage(recipe=text_rows(lab) | {"join": "shared_prefix"}, train={"decoder": {"lr": 1e-2}})

    def run(out: str) -> Any:
        return lab.run(out, [stage], model=lab.text_model(), save={"every": "1 step"}, seed=3)

    finish(run("calm"))
    stopped = execute(run("stopped"))
    next(stopped)
    next(stopped)
    stopped.close()
    finish(run("stopped"))
    assert weights(lab.folder / "stopped") == weights(lab.folder / "calm")
    assert losses(lab.folder / "stopped") == losses(lab.folder / "calm")


def test_joined_rows_read_a_prompt_once_and_learn_the_same(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "t5")
    # Dropout would draw other masks for other batches; and a step of all rows is the same in any order.
    folder(lab.folder / "decoder", "t5", dropout_rate=0.0)
    found = {}
    for join in (None, "shared_prefix"):
        stage = lab.stage(
            recipe=text_rows(lab) | {"join": join}, train={"decoder": {"lr": 1e-2}}, batch="24 examples",
            duration="2 steps", micro_batch="400 tokens",
        )  # fmt: skip
        run = lab.run(str(join), [stage], model=lab.text_model())
        found[join] = finish(run), lines(run.folder / "log.jsonl")
    apart, joined = ([step.loss for step in steps] for steps, _ in found.values())
    # fp32: the same terms in another order
    assert joined == pytest.approx(apart, rel=1e-5)
    tokens = [[line["tokens"] for line in log if "tokens" in line] for _, log in found.values()]
    assert tokens[1][0] < 0.7 * tokens[0][0]


def test_pictures_are_learned_from_and_asked_about(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "t5")
    train = {"decoder.lora": {"lr": 1e-2}, "towers.image.adapter": {"lr": 1e-2}}
    run = lab.run("a", [lab.stage(recipe=lab.recipe(template="hash"), train=train)])
    report = check(run)
    assert report.ok, report.text()
    assert any("T5ForConditionalGeneration is an encoder-decoder" in note for note in report.notes)
    assert len(finish(run)) == 4
    assistant = open_run(run.folder)
    red, blue = (ask("What?", (Media("image", str(lab.folder / "images" / f"{c}.png")),)) for c in ("red", "blue"))
    with torch.no_grad():
        seen = [assistant.model.embed(assistant._batch([assistant.encoder.prompt(one)])) for one in (red, blue)]
    assert not torch.equal(seen[0], seen[1])
    assert len(assistant.answers([red, blue], max_new_tokens=3)) == 2


def test_a_tokenizer_without_a_template_names_the_ways_out(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "t5")
    run = lab.run("a", [lab.stage(recipe=text_rows(lab) | {"template": "auto"})], model=lab.text_model())
    with pytest.raises(ConfigError, match=r"has no chat template; choose plain"):
        load_run(lab.folder / "a.yaml").encoder(run.config.stages[0].recipe)


def test_a_process_without_a_row_runs_both_sides_all_the_same(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "t5")
    run = lab.run("a", [lab.stage(recipe=text_rows(lab))], model=lab.text_model())
    (stage,) = run.config.stages
    size = Duration(1, "examples")
    steps = Steps(run.mixture(stage.recipe), run.encoding(stage), 3, size, 1)
    shares = [replace(steps, share=Share(rank, 2))[0] for rank in (0, 1)]
    assert sorted(share.targets for share in shares)[0] == 0
    model = run.model()
    for share in shares:
        scored = model(share.micro[0])
        assert len(scored) == share.targets
        scored.sum().backward()


@pytest.mark.parametrize("join", [None, "shared_prefix"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_out_prompts_and_replies_and_learn_the_whole(
    tmp_path: Path, join: str | None, ranks: int
) -> None:
    lab = lab_of(tmp_path, "t5")
    stage = lab.stage(recipe=text_rows(lab) | {"join": join}, micro_batch="120 tokens")
    run = lab.run("a", [stage], model=lab.text_model())
    [found] = run.config.stages
    steps = Steps(run.mixture(found.recipe), run.encoding(found), 3, Duration(24, "examples"), 24)
    shares = [replace(steps, share=Share(rank, ranks))[0] for rank in range(ranks)]

    def said(*steps: StepData) -> list[tuple[list[int], list[int]]]:
        return sorted(pair for step in steps for micro in step.micro for pair in batch_sides(micro))

    assert said(*shares) == said(steps[0])
    assert len(said(steps[0])) == sum(share.used for share in shares) == 24
    assert len({share.division for share in shares}) == 1
    sizes = [[b.input_ids.numel() + b.prompts.input_ids.numel() for b in step.micro if b.prompts] for step in shares]
    assert max(map(max, sizes)) <= 120
    assert max(map(sum, sizes)) - min(map(sum, sizes)) <= 120  # one micro-batch
