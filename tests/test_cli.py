import json
import os
import subprocess
import sys
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsft import cli
from mmsft.errors import ConfigError
from tests.makers import Command, Lab, Said

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A trained run in ``run``, with its config beside it."""
    torch.set_num_threads(1)
    lab = Lab.make(tmp_path_factory.mktemp("lab"))
    recipe = lab.recipe(validation={"fraction": 0.5})
    run = lab.run("run", [lab.stage(recipe=recipe, duration="2 steps", evaluate={"every": "1 step"})])
    assert cli_outside("train", lab.folder / "run.yaml").code == 0
    assert (run.folder / "checkpoints").is_dir()
    return lab


def cli_outside(*arguments: object) -> Said:
    """Runs a command line in a process of its own."""
    command = [sys.executable, "-m", "mmsft", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TQDM_DISABLE", None)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    return Said(done.returncode, done.stdout, done.stderr)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['mmsft', '--help']; from mmsft import cli\n"
        "try: cli.main()\n"
        "finally: assert not {'torch', 'transformers', 'numpy', 'pydantic', 'rich'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("train", "check", "chat", "eval", "export", "data", "assets"):
        assert command in done.stdout


def test_training_says_where_the_results_are_and_nothing_of_libraries(lab: Lab) -> None:
    config = lab.write(lab.config("fresh"))
    said = cli_outside("train", config)
    assert (said.code, str(lab.folder / "fresh") in said.out) == (0, True)
    assert "align 4/4 loss" in said.err
    for noise in ("Loading weights", "Warning", "it/s"):
        assert noise not in said.out + said.err
    again = cli_outside("train", lab.folder / "fresh")
    assert (again.code, "already complete" in again.out) == (0, True)


def test_check_finds_a_sound_config_sound(lab: Lab, mmsft: Command) -> None:
    config = lab.write(lab.config("sound"))
    said = mmsft("check", config)
    assert (said.code, said.out.splitlines()[-1]) == (0, "ready to train")
    report = json.loads(mmsft("check", config, "--json").out)
    assert report["ok"]
    assert any("towers.image.adapter learns, 416 parameters at 0.01" in fact for fact in report["facts"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"train": {"towers.image.adaptor": {"lr": 1}}}, "did you mean 'towers.image.adapter'"),
        ({"recipe": {"template": "chatml", "length": 5}}, "the recipe's length is 5"),
    ],
)
def test_check_names_what_has_to_be_mended(lab: Lab, mmsft: Command, change: dict[str, Any], problem: str) -> None:
    stage = lab.stage()
    stage = stage | change | ({"recipe": lab.recipe() | change["recipe"]} if "recipe" in change else {})
    config = lab.write(lab.config("unsound", [stage]))
    said = mmsft("check", config, "--json")
    report = json.loads(said.out)
    assert (said.code, report["ok"]) == (2, False)
    assert any(problem in line for line in report["problems"])


def test_eval_prints_one_json_object(lab: Lab, mmsft: Command) -> None:
    for options in ([], ["--blank"], ["--shuffled"], ["--untrained"], ["--checkpoint", "best"]):
        said = mmsft("eval", lab.folder / "run", "--rows", 6, "--max-new-tokens", 2, "--json", *options)
        assert said.code == 0, said.err
        score = json.loads(said.out)
        assert score["rows"] == 6
        assert set(score["by_tag"]) == {"kind"}
    assert (
        "accuracy 0.0% on 6 held-out rows" in mmsft("eval", lab.folder / "run", "--rows", 6, "--max-new-tokens", 2).out
    )


def test_chat_answers_about_a_picture(lab: Lab, mmsft: Command) -> None:
    said = mmsft("chat", lab.folder / "run", "What?", "--image", lab.folder / "images/red.png", "--max-new-tokens", 3)
    assert said.code == 0, said.err


def test_chat_holds_a_dialogue(lab: Lab, mmsft: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("What?\n/image gone.png\nAnd now?\n\n"))
    said = mmsft("chat", lab.folder / "run", "--max-new-tokens", 3)
    assert said.code == 0, said.err
    assert f"error: <image: gone.png>: no such file (looked in {Path.cwd()})" in said.out


def test_a_missing_picture_is_said_before_the_dialogue_begins(
    lab: Lab, mmsft: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("What?\n"))
    said = mmsft("chat", lab.folder / "run", "--image", "gone.png")
    assert (said.code, said.out) == (2, "")
    assert "<image: gone.png>: no such file" in said.err


def test_a_line_that_is_no_utf8_is_an_error_within_the_dialogue(
    lab: Lab, mmsft: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"What \xff?\nlong " + b"x" * 300), encoding="utf-8"))
    said = mmsft("chat", lab.folder / "run", "--max-new-tokens", 1)
    assert said.code == 0, said.err
    assert [line[:37] for line in said.out.splitlines()[1:]] == [
        r"error: question: character 5 is '\udc",
        "error: question: 322 tokens; the reci",
    ]


@pytest.mark.parametrize("file", ["images/gone.png", "rows.jsonl"])
def test_chat_about_no_picture_is_the_users_error(lab: Lab, mmsft: Command, file: str) -> None:
    said = mmsft("chat", lab.folder / "run", "What?", "--image", lab.folder / file)
    assert (said.code, said.out) == (2, "")
    assert file in said.err.partition("error: ")[2]
    assert "Traceback" not in said.err


def test_media_are_given_with_their_modality(lab: Lab, mmsft: Command) -> None:
    picture = lab.folder / "images" / "red.png"
    assert mmsft("chat", lab.folder / "run", "What?", "--media", f"image={picture}", "--max-new-tokens", 1).code == 0
    assert "write MODALITY=FILE" in mmsft("chat", lab.folder / "run", "What?", "--media", picture).err
    assert "write MODALITY=FILE" in mmsft("chat", lab.folder / "run", "What?", "--media", "=a.png").err
    assert f"{lab.folder} is a folder; name a file" in mmsft("chat", lab.folder / "run", "?", "--image", lab.folder).err
    assert "no audio tower" in mmsft("chat", lab.folder / "run", "What?", "--media", f"audio={picture}").err


def test_data_show_tells_what_is_learned(lab: Lab, mmsft: Command) -> None:
    said = mmsft("data", "show", lab.folder / "run.yaml", "--rows", 2, "--json")
    rows = json.loads(said.out)["rows"]
    assert len(rows) == 2
    for row in rows:
        learned = "".join(token["text"] for token in row["tokens"] if token["weight"])
        assert learned.endswith("<|im_end|>")
        assert learned.removesuffix("<|im_end|>").isalpha()
    text = mmsft("data", "show", lab.folder / "run.yaml", "--rows", 3).out
    assert "\x1b" not in text, "colour belongs on a terminal"
    assert "4 of media" in text


def test_data_show_of_an_unknown_stage_suggests_one(lab: Lab, mmsft: Command) -> None:
    said = mmsft("data", "show", lab.folder / "run.yaml", "--stage", "alin")
    assert (said.code, "did you mean 'align'" in said.err) == (2, True)


def test_export_of_a_llava_layout_compares_the_logits(lab: Lab, mmsft: Command) -> None:
    said = mmsft("export", lab.folder / "run", "--out", lab.folder / "hf", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["max_logit_difference"] < 1e-4
    assert mmsft("export", lab.folder / "run", "--out", lab.folder / "x", "--to", "gguf").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "gone.yaml"], 2, "gone.yaml"),
        (["train", "{lab}/run.yaml", "stages.align.durations=1 step"], 2, "did you mean 'duration'"),
        (["train", "{lab}/run.yaml", "seed=5"], 1, "seed: 0 → 5"),
        (["chat", "{lab}/images", "Hi"], 2, "config.yaml"),
        (["assets", "fetch", "smollm"], 2, "no such asset"),
        (["frobnicate"], 2, "No such command"),
        (["chat", "{lab}/run", ""], 2, "'' asks nothing"),
        (["chat", "{lab}/run", "Hi", "--temperature", "-1"], 2, "'--temperature'"),
        (["chat", "{lab}/run", "Hi", "--temperature", "nan"], 2, "'--temperature'"),
        (["chat", "{lab}/run", "Hi", "--max-new-tokens", "0"], 2, "'--max-new-tokens'"),
        (["chat", "{lab}/run", "Hi \udcff"], 2, "half of a surrogate pair"),
        (["eval", "{lab}/run", "--rows", "0"], 2, "'--rows'"),
        (["eval", "{lab}/run", "--max-new-tokens", "0"], 2, "'--max-new-tokens'"),
        (["data", "show", "{lab}/run.yaml", "--rows", "0"], 2, "'--rows'"),
        (["data", "show", "{lab}/run.yaml", "--start", "-1"], 2, "'--start'"),
        (["data", "show", "{lab}/run.yaml", "--start", "1000"], 2, "--start 1000: stage align trains on"),
    ],
)
def test_errors_are_a_message_and_an_exit_code(
    lab: Lab, mmsft: Command, arguments: list[str], code: int, message: str
) -> None:
    said = mmsft(*(argument.replace("{lab}", str(lab.folder)) for argument in arguments))
    assert (said.code, said.out) == (code, "")
    assert message in said.err
    assert "Traceback" not in said.err


def test_debug_shows_the_traceback(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mmsft", "chat", str(lab.folder / "images"), "Hi", "--debug"])
    with pytest.raises(ConfigError):
        cli.main()
