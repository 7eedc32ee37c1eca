"""InstructBLIP end to end, from rows to gradients: what is asked reaches the Q-Former as transformers has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmsft.adapters import QFormer
from mmsft.adapters.instruction import BESIDE, load_tokenizer
from mmsft.assistant import Assistant
from mmsft.data.chat import ChatEncoder
from mmsft.data.media_reader import Loaded, MediaReader
from mmsft.data.template import resolve_template
from mmsft.data.tree import join, threads
from mmsft.errors import ConfigError
from mmsft.modalities import Blip
from mmsft.model.fusion import MultimodalModel
from mmsft.parallel import Ranks
from mmsft.types import Batch, Conversation, Encoded, Media
from tests.data.conftest import byte_level
from tests.data.dialogues import assistant, conversation, user
from tests.makers import picture
from tests.model.blip import IMAGE_ID, QFORMER, SIZES, bert, instructblip, ours
from tests.model.tiny import llama_config
from tests.parity.compare import EXACT, apart, difference, learned, packed, padded

TOLERANCE = 2e-4
"""fp32: padding, and several threads, change the order of sums; norms of 8 numbers make 1e-5 of that."""
Asked = Sequence[tuple[Media, str]]


@dataclass(frozen=True)
class World:
    """Our model and transformers', with the same weights; and what turns rows into batches."""

    theirs: Any
    model: MultimodalModel
    reader: MediaReader
    encoder: ChatEncoder
    red: Media
    blue: Media

    def rows(self) -> list[tuple[Conversation, Asked]]:
        """Rows, and for each of their pictures what the Q-Former is to read."""
        red, blue, colour, many = self.red, self.blue, "What colour is it?", "How many! is [SEP] this the red one?"
        return [
            (conversation(user(red, "\n" + colour), assistant("red")), [(red, colour)]),
            (conversation(user(red, many), assistant("one")), [(red, many)]),
            (conversation(user(red, colour), assistant("blue?")), [(red, colour)]),
            (
                conversation(user("which ", blue, " is ", red, "?"), assistant("a")),
                [(blue, "which  is ?"), (red, "which  is ?")],
            ),
            (
                conversation(user(blue), assistant("so"), user(red, "how many?"), assistant("no")),
                [(blue, ""), (red, "how many?")],
            ),
        ]

    def encoded(self) -> tuple[list[Encoded], Loaded, Asked]:
        rows = self.rows()
        loaded = {medium: self.reader.load(medium) for medium in (self.red, self.blue)}
        asked = [one for _, questions in rows for one in questions]
        return [self.encoder.encode(row) for row, _ in rows], loaded, asked

    def their_inputs(self, batch: Batch, loaded: Any, asked: Asked) -> dict[str, Tensor]:
        """Returns what their processor makes of the questions, with our prompts."""
        ids = batch.input_ids.clone()
        ids.view(-1)[batch.media["image"].slots] = IMAGE_ID
        tokenizer = load_tokenizer(str(self.encoder_folder))
        texts = [text.replace("[SEP]", "[ sep ]") for _, text in asked]
        questions = tokenizer(texts, padding=True, return_tensors="pt")
        labels = torch.full_like(batch.input_ids, -100)
        labels.view(-1)[batch.targets.at + 1] = batch.targets.token
        return {
            "input_ids": ids,
            "attention_mask": batch.mask.long(),
            "pixel_values": torch.stack([loaded[medium]["pixels"] for medium, _ in asked]),
            "qformer_input_ids": questions["input_ids"],
            "qformer_attention_mask": questions["attention_mask"],
            "labels": labels,
        }

    @property
    def encoder_folder(self) -> Path:
        return Path(self.reader.towers["image"][0].name) / BESIDE  # type: ignore[attr-defined]


@pytest.fixture
def world(tmp_path: Path) -> World:
    tokenizer = byte_level()
    theirs = instructblip(llama_config(vocab_size=len(tokenizer.hf)))
    folder = tmp_path / "instructblip"
    model = ours(theirs, folder, instruction=128, tokenizer=str(bert(folder / BESIDE)))
    model.find_attention()
    assert model.packs
    spec = QFormer(**SIZES, weights=str(folder), instruction=128)
    reader = MediaReader({"image": (Blip(str(folder)), spec)})
    template = resolve_template("chatml", tokenizer)
    encoder = ChatEncoder(tokenizer, template, slots=reader.layout, contexts=reader.contexts)
    red, blue = (Media("image", str(picture(tmp_path / f"{name}.png", name))) for name in ("red", "blue"))
    return World(theirs, model, reader, encoder, red, blue)


@torch.no_grad()
def test_logits_and_loss_equal_those_of_transformers_instructblip(world: World) -> None:
    rows, loaded, asked = world.encoded()
    [batch] = padded(rows, world.reader, loaded)
    expected = world.theirs(**world.their_inputs(batch, loaded, asked))
    found = world.model.logits(batch)[batch.mask]
    torch.testing.assert_close(found, expected.logits[batch.mask], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(world.model(batch).mean(), expected.loss, atol=TOLERANCE, rtol=0)


def test_gradients_equal_those_of_transformers_instructblip(world: World) -> None:
    rows, loaded, asked = world.encoded()
    [batch] = padded(rows, world.reader, loaded)
    world.model(batch).mean().backward()
    world.theirs(**world.their_inputs(batch, loaded, asked)).loss.backward()
    expected = dict(world.theirs.named_parameters())
    for name, stated in {
        "frame.queries": "query_tokens",
        "frame.qformer.embeddings.word_embeddings.weight": "qformer.embeddings.word_embeddings.weight",
        "frame.qformer.encoder.layer.0.intermediate.dense.weight": "qformer.encoder.layer.0.intermediate.dense.weight",
        "frame.qformer.encoder.layer.2.crossattention.attention.value.weight": (
            "qformer.encoder.layer.2.crossattention.attention.value.weight"
        ),
        "projection.layers.weight": "language_projection.weight",
    }.items():
        found = world.model.get_parameter(f"towers.image.adapter.{name}").grad
        assert found is not None
        torch.testing.assert_close(found, expected[stated].grad.view_as(found), atol=TOLERANCE / 20, rtol=1e-3)


def test_each_picture_is_encoded_once_and_each_question_about_it_read_once(world: World) -> None:
    rows, loaded, _ = world.encoded()
    [batch] = packed([join(rows[:3])], world.reader, loaded)
    [group] = batch.media["image"].groups
    assert group.keys == (world.red,)
    assert group.context is not None
    assert (len(group), group.context.of.tolist()) == (2, [0, 0])
    # What isn't asked in both ways is shared by the two rows that ask alike, slots and question included.
    assert len(batch.media["image"].uses) == 2


def test_packs_trees_and_padding_learn_what_each_thread_learns_by_itself(world: World) -> None:
    rows, loaded, _ = world.encoded()
    alone = learned(world.model, apart(rows, world.reader, loaded))
    tree = join(rows)
    assert len(tree) < sum(map(len, rows)) - 3
    assert len(threads(tree)) == len(rows)
    for batches in (
        packed(rows, world.reader, loaded),
        packed([tree], world.reader, loaded),
        padded(rows, world.reader, loaded),
    ):
        # Norms of 8 numbers make more of rounding than those of the models that `EXACT` is of.
        assert difference(learned(world.model, batches), alone) < 10 * EXACT


@torch.no_grad()
def test_another_question_makes_other_tokens_of_the_same_picture(world: World) -> None:
    rows, loaded, _ = world.encoded()
    [batch] = padded(rows[:2], world.reader, loaded)
    [group] = batch.media["image"].groups
    one, other = world.model.towers["image"](group)
    assert (one - other).abs().max() > 0.1


def test_answers_are_those_that_transformers_generates(world: World) -> None:
    _, loaded, asked = world.encoded()
    first = [conversation(*row.turns[:1]) for row, _ in world.rows()[:3]]
    talker = Assistant(world.model, world.encoder, world.reader, Ranks("fp32"))
    found = talker.answers(first, max_new_tokens=4)
    for row, (medium, text), answer in zip(first, asked, found, strict=False):
        prompt = world.encoder.prompt(row)
        [batch] = padded([prompt], world.reader, loaded)
        inputs = world.their_inputs(batch, loaded, [(medium, text)])
        del inputs["labels"]
        with torch.no_grad():
            ids = world.theirs.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
        said = ids[0].tolist()[-4:]
        stops = [at for at, token in enumerate(said) if token in world.encoder.stop_ids]
        assert answer == world.encoder.decode_reply(said[: stops[0]] if stops else said)


def test_a_tokenizer_larger_than_the_qformers_vocabulary_is_refused(world: World, tmp_path: Path) -> None:
    folder = Path(world.reader.towers["image"][0].name)  # type: ignore[attr-defined]
    large = byte_level().hf
    large.save_pretrained(tmp_path / "large")
    spec = QFormer(**SIZES, weights=str(folder), instruction=8, tokenizer=str(tmp_path / "large"))
    with pytest.raises(ConfigError, match=f"has {len(large)} tokens, and the Q-Former there {QFORMER['vocab_size']}"):
        spec.build(12, 16)


def test_weights_and_instruction_go_together(world: World) -> None:
    folder = world.reader.towers["image"][0].name  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="that is a instructblip model; without `instruction`, name a blip-2"):
        QFormer(**SIZES, weights=folder).build(12, 16)
