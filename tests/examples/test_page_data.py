"""docs/data.md shows rows, and what a model reads and learns of them, as they are."""

import json
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import trl
import yaml

from mmsft.config import RecipeConfig
from mmsft.config.document import parse_yaml
from mmsft.data.chat import ChatEncoder
from mmsft.data.formats import FORMATS
from mmsft.data.formats.turns import SCALE_KEYS, SPEAKERS, WEIGHT_KEYS
from mmsft.data.script import PrefixBroken
from mmsft.data.template import SHIPPED, resolve_template
from mmsft.data.tokens import Tokenizer
from mmsft.data.tree import threads
from mmsft.data.wordings import read_wordings
from mmsft.errors import DataError
from mmsft.types import Conversation, Encoded
from tests.data.conftest import byte_level
from tests.data.dialogues import assistant, conversation, dialogue, three_slots, user
from tests.data.test_templates_trl import tokenizer_for
from tests.examples.pages import DOCS, Block, blocks, enter
from tests.makers import Lab

PAGE = blocks("data.md")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def of_kind(kind: str) -> list[Block]:
    return [block for block in PAGE if block.kind == kind]


def readings() -> list[tuple[Block, Block]]:
    """Returns what the page says a model reads, each with the row above it."""
    found, row = [], None
    for block in PAGE:
        row = block if block.kind == "row" else row
        if block.kind == "reads":
            assert row is not None
            found.append((row, block))
    return found


def encoder(template: str, **options: Any) -> ChatEncoder:
    """Returns an encoder for a shipped template, or for one that trl ships."""
    if template in SHIPPED:
        tokenizer = byte_level() if template == "chatml" else byte_level(("</s>",), eos="</s>")
    else:
        template = str(TEMPLATES / f"{template}.jinja")
        tokenizer = tokenizer_for(Path(template).read_text(encoding="utf-8"))
    return ChatEncoder(tokenizer, resolve_template(template, tokenizer), slots=three_slots, **options)


def marked(tokenizer: Tokenizer, encoded: Encoded) -> str:
    """Returns what the model reads, thread by thread, as `mmsft data show` marks it."""
    return "\n".join(_marked(tokenizer, thread) for thread in threads(encoded))


def _marked(tokenizer: Tokenizer, encoded: Encoded) -> str:
    targets = zip(encoded.targets.position.tolist(), encoded.targets.weight.tolist(), strict=True)
    weights = {position + 1: weight for position, weight in targets}
    media = {
        int(slot): f"⟨{placed.media.modality}: {placed.media.ref!s}⟩"
        for placed in encoded.media
        for slot in placed.slots
    }
    written = ""
    tokens = enumerate(encoded.input_ids.tolist())
    for (medium, weight), run in groupby(tokens, lambda token: (media.get(token[0]), weights.get(token[0], 0.0))):
        text = medium or tokenizer.decode([id for _, id in run])
        factor = "" if weight == 1 else f"[weight {weight:g}]"
        written += f"⟦{text}⟧{factor}" if weight else text
    return written + "\n"


def test_every_row_of_the_page_is_read_somewhere_below_it() -> None:
    assert [id(block) for block in of_kind("row")] == list(dict.fromkeys(id(row) for row, _ in readings()))
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|.*\[rows\]\(\.\./(\S+)\) \|$", text, re.M)
    assert [*sorted({row.name or "" for row, _ in readings()}), *(name for name, _ in listed)] == sorted(
        FORMATS, key=lambda name: (name in dict(listed), name)
    )
    assert all((DOCS.parent / fixture).is_file() for _, fixture in listed)


@pytest.mark.parametrize(("row", "reads"), readings(), ids=lambda block: f"{block.name}-{PAGE.index(block)}")
def test_a_row_is_read_and_learned_as_the_page_says(row: Block, reads: Block) -> None:
    template, *options = (reads.name or "").split()
    encode = encoder(template, **dict(option.split("=") for option in options))
    read = marked(encode.tokenizer, encode.encode(FORMATS[row.name or ""](json.loads(row.text), "page:1")))
    if reads.text.startswith("…\n"):
        assert read.endswith(reads.text.removeprefix("…"))
    else:
        assert read == reads.text


def test_all_learns_every_token_but_the_first() -> None:
    encode = encoder("chatml", learn="all")
    encoded = encode.encode(simple())
    assert encoded.targets.token.tolist() == encoded.input_ids.tolist()[1:]


def simple() -> Conversation:
    return conversation(user("What is this?"), assistant("A cat."))


@pytest.mark.parametrize("block", of_kind("template"), ids=lambda block: str(block.name))
def test_a_shipped_template_writes_what_the_page_says(block: Block) -> None:
    encode = encoder(block.name or "")
    assert marked(encode.tokenizer, encode.encode(simple())) == block.text


def test_the_page_shows_each_shipped_template() -> None:
    assert {*(block.name for block in of_kind("template")), "plain"} == set(SHIPPED)


def test_a_template_that_drops_earlier_thinking_learns_as_the_page_says() -> None:
    talk = dialogue(2)
    assert len(threads(encoder("qwen3").encode(talk))) == 2
    assert len(threads(encoder("qwen3", learn="completion").encode(talk))) == 1
    assert len(threads(encoder("qwen3_training").encode(talk))) == 1
    with pytest.raises(PrefixBroken, match="use a variant of the template for training"):
        encoder("deepseek_r1_distill").encode(talk)


@pytest.mark.parametrize("block", of_kind("refused"), ids=lambda block: str(block.name))
def test_a_row_is_refused_with_the_reason_on_the_page(block: Block) -> None:
    written = block.text.splitlines()
    assert len(written) >= 6
    for row, reason in zip(written[::2], written[1::2], strict=True):
        with pytest.raises(DataError) as refused:
            FORMATS[block.name or ""](json.loads(row), "page:1")
        assert str(refused.value).startswith(f"page:1: {reason.removeprefix('→ ')}")


@pytest.mark.parametrize(("what", "names"), [("Roles", SPEAKERS), ("Weights", (*WEIGHT_KEYS, *SCALE_KEYS))])
def test_the_page_lists_all_spellings(what: str, names: Iterable[str]) -> None:
    [listed] = re.findall(rf"^- \*\*{what}\*\*(.+(?:\n  .+)*)", (DOCS / "data.md").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"`(\w+)`", listed)) == set(names)


def test_the_recipes_of_the_page_are_recipes() -> None:
    found = {block.name: parse_yaml(block.text) for block in of_kind("recipe")}
    assert set(found) == {"mixture", "join", "templates", "sensitivity", "weights", "nested", "entries"}
    read = {name: RecipeConfig.model_validate(recipe) for name, recipe in found.items()}
    assert read["join"].join == "shared_prefix"
    assert read["weights"].mix.unit == "tokens"
    assert read["sensitivity"].loss_by == "wording"
    recipe = found["mixture"]
    assert len(RecipeConfig.model_validate(recipe).sources) == 4
    held_out = of_kind("validation")
    assert [block.name for block in held_out] == ["fraction", "source", "file"]
    for block in held_out:
        validation = RecipeConfig.model_validate(recipe | parse_yaml(block.text)).validation
        assert validation
        assert validation.model_fields_set == {block.name}


def test_the_wordings_of_the_page_render(tmp_path: Path) -> None:
    [block] = of_kind("wordings")
    file = tmp_path / "wordings.yaml"
    file.write_text(block.text, encoding="utf-8")
    row = {"label": 1, "caption": "A cat.", "question": "What is it?", "options": ["a dog", "a cat"]}
    said = [wording.render(row, "page:1")[:2] for wording in read_wordings(file)]
    assert said == [("<image>What is 1 about?", "A cat."), ("<image>What is it? Choose: a dog, a cat.", "a cat")]


def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab.make(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(lab.config("run")), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    [commands] = [block for block in PAGE if block.language == "console"]
    for line in commands.text.splitlines():
        enter(line, monkeypatch)
    *_, shown = capsys.readouterr().out.strip().splitlines()
    assert len(json.loads(shown)["rows"]) == 1
