"""Encoder–decoders compute what transformers' own classes do, and read a prompt once for all its replies."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    FSMTConfig,
    FSMTForConditionalGeneration,
    MarianMTModel,
    MBartForConditionalGeneration,
    PegasusForConditionalGeneration,
)

from mmsft.adapters import Mlp2xGelu
from mmsft.config import DecoderConfig, LoraConfig, ModelConfig
from mmsft.data import tree
from mmsft.data.collate import collate
from mmsft.data.media_reader import MediaReader
from mmsft.errors import ConfigError
from mmsft.modalities import Clip
from mmsft.model.build import build_model
from mmsft.model.decoder import decoder_start, load_decoder, load_tokenizer
from mmsft.model.export import export_hf, rehearsal_problem
from mmsft.model.fusion import MultimodalModel
from mmsft.model.generation import generate
from mmsft.model.new_tokens import grow_vocabulary, heads_tied
from mmsft.types import Batch, Conversation, Encoded, Media, Text, Turn
from tests.makers import picture
from tests.model.seq2seq import FAMILIES, encoder, folder, model, talk, tokenizer
from tests.model.test_tuning import stir
from tests.model.tiny import clip_folder, model_with_tower

ROWS = [("this is the end", "red"), ("a", "and then it is"), ("what is this?", "the")]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def batch_of(family: str, rows: Sequence[tuple[str, ...]]) -> Batch:
    made = encoder(family)
    return collate([made.encode(talk(*row)) for row in rows], MediaReader({}), {})


def ready(decoder: Any) -> MultimodalModel:
    found = MultimodalModel(decoder)
    found.find_head()
    found.find_attention()
    assert not found.packs
    return found


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [parameter for parameter in module.parameters()]))


def alike(ones: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for one, other in zip(ones, others, strict=True):
        # fp32: the same products, in blocks of another size and order; the largest entry says how large roundings are
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max().clamp(min=1)))


def labels(family: str, replies: Sequence[str]) -> Tensor:
    hf: Any = tokenizer(family)
    padded = hf(text_target=list(replies), padding=True, return_tensors="pt")
    learned: Tensor = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    return learned


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_are_those_of_transformers(family: str) -> None:
    ours, theirs = ready(model(family)), model(family)
    assert ours.head_apart is (family == "flan-t5")
    hf: Any = tokenizer(family)
    inputs = hf([prompt for prompt, _ in ROWS], padding=True, return_tensors="pt")
    expected = theirs(**inputs, labels=labels(family, [reply for _, reply in ROWS])).loss
    loss = ours(batch_of(family, ROWS)).mean()
    alike([loss, *gradients(loss, ours.decoder)], [expected, *gradients(expected, theirs)])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_the_split_into_batches_change_nothing(family: str) -> None:
    ours = ready(model(family))
    together = ours(batch_of(family, ROWS)).sum()
    apart = torch.stack([ours(batch_of(family, [row])).sum() for row in ROWS]).sum()
    alike([together, *gradients(together, ours)], [apart, *gradients(apart, ours)])


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_to_one_prompt_equal_rows_of_their_own_and_it_is_read_once(family: str) -> None:
    ours = ready(model(family))
    read: list[torch.Size] = []
    reader: Any = ours.decoder.get_encoder()
    reader.register_forward_pre_hook(lambda m, a, given: read.append(given["inputs_embeds"].shape), with_kwargs=True)
    replies = ("red", "and then it is", "the")
    shared = ours(batch_of(family, [("what is this?", *replies)])).sum()
    assert [size[0] for size in read] == [1]
    apart = ours(batch_of(family, [("what is this?", reply) for reply in replies])).sum()
    alike([shared, *gradients(shared, ours)], [apart, *gradients(apart, ours)])


@pytest.mark.parametrize("kind", [MarianMTModel, MBartForConditionalGeneration, PegasusForConditionalGeneration])
def test_embeddings_are_scaled_as_the_family_scales_its_own(kind: Any) -> None:
    torch.manual_seed(0)
    settings = model("bart").config.to_dict() | {"scale_embedding": True, "model_type": kind.config_class.model_type}
    decoder = kind(kind.config_class(**settings)).eval()
    batch = batch_of("bart", ROWS)
    assert batch.prompts is not None
    inputs = {"input_ids": batch.prompts.input_ids, "attention_mask": batch.prompts.mask.long()}
    expected = decoder(**inputs, decoder_input_ids=batch.input_ids, decoder_attention_mask=batch.mask.long()).logits
    alike([ready(decoder).logits(batch)[batch.mask]], [expected[batch.mask]])


def test_a_family_that_takes_no_embeddings_is_refused() -> None:
    sizes = {name: value for name, value in model("bart").config.to_dict().items() if name.startswith(("enc", "dec"))}
    decoder = FSMTForConditionalGeneration(FSMTConfig(src_vocab_size=50, tgt_vocab_size=50, d_model=16, **sizes))
    with pytest.raises(ConfigError, match="FSMTForConditionalGeneration can't be run on embeddings"):
        MultimodalModel(decoder).find_head()


def test_the_id_of_padding_decides_nothing() -> None:
    ours = ready(model("bart"))
    batch = batch_of("bart", ROWS)
    assert batch.prompts is not None
    assert not batch.mask.all()
    prompts = replace(batch.prompts, input_ids=torch.where(batch.prompts.mask, batch.prompts.input_ids, 7))
    other = replace(batch, input_ids=torch.where(batch.mask, batch.input_ids, 9), prompts=prompts)
    assert torch.equal(ours(batch), ours(other))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_picture_in_a_prompt_is_read_by_the_encoder(family: str, tmp_path: Path) -> None:
    clip = Clip(str(clip_folder(tmp_path / "clip")))
    reader = MediaReader({"image": (clip, Mlp2xGelu())})
    red = Media("image", str(picture(tmp_path / "red.png", "red")))
    made = replace(encoder(family), slots=reader.layout)
    ours = model_with_tower(clip, decoder=model(family))
    ours.find_head()
    turns = (Turn("user", (red, Text("What?"))), *(Turn("assistant", (Text(reply),), parent=0) for reply in "ab"))
    row = made.encode(Conversation("r:1", turns))
    loaded = {red: reader.load(red)}

    def loss_of(rows: list[Encoded]) -> Tensor:
        losses: Tensor = ours(collate(rows, reader, loaded))
        return losses.sum()

    shared, apart = loss_of([row]), loss_of(tree.threads(row))
    alike([shared, *gradients(shared, ours)], [apart, *gradients(apart, ours)])
    batch = collate([row], reader, loaded)
    assert batch.prompts is not None
    tower: Any = ours.towers["image"]
    embeds = ours.decoder.get_input_embeddings()(batch.prompts.input_ids)
    slots = batch.media["image"].slots
    spliced = embeds[0].index_copy(0, slots, tower(batch.media["image"].groups[0])[0])
    expected = ours.decoder(inputs_embeds=spliced.expand(2, -1, -1), labels=labels(family, "ab")).loss
    alike([shared / len(batch.targets.token)], [expected])


def config(path: Path, family: str, **decoder: Any) -> ModelConfig:
    return ModelConfig(decoder=DecoderConfig(name=str(folder(path / family, family)), **decoder))


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_that_of_transformers(family: str) -> None:
    ours, hf = ready(model(family)), tokenizer(family)
    theirs: Any = model(family)
    made = encoder(family)
    prompts = [made.prompt(Conversation("r:1", (Turn("user", (Text(prompt),)),))) for prompt, _ in ROWS]
    batch = collate(prompts, MediaReader({}), {}, side="left")
    found = generate(ours, batch, max_new_tokens=8, stop_ids=[])
    inputs = hf([prompt for prompt, _ in ROWS], padding=True, return_tensors="pt")
    theirs.generation_config.eos_token_id = theirs.generation_config.forced_eos_token_id = None
    expected = theirs.generate(
        **inputs, decoder_input_ids=batch.input_ids, max_new_tokens=8, min_new_tokens=8, do_sample=False
    )
    assert found == expected[:, batch.input_ids.shape[1] :].tolist()
    stop = found[0][3]
    stopped = generate(ours, batch, max_new_tokens=8, stop_ids=[stop])
    assert stopped[0] == found[0][: found[0].index(stop)]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_and_new_tokens_change_nothing_at_first_and_the_export_is_what_was_trained(
    family: str, tmp_path: Path
) -> None:
    settings = config(tmp_path, family, lora=LoraConfig(r=2), new_tokens=("<a>",))
    hf = load_tokenizer(settings.decoder)
    ours = build_model(settings, hf)
    batch = batch_of(family, ROWS)
    known = len(hf) - 1
    with torch.no_grad():
        fresh = MultimodalModel(load_decoder(settings.decoder)).eval().logits(batch)
        torch.testing.assert_close(ours.logits(batch)[..., :known], fresh)
    lora = [name for name, _ in ours.named_parameters() if ".lora_A." in name]
    assert any(".encoder." in name for name in lora)
    assert any("EncDecAttention" in name or "encoder_attn" in name for name in lora)
    stir(ours, "lora_B", "new_input", "new_output")
    said = encoder(family).encode(talk("what", "the"))
    said.input_ids[1] = known  # the new token, in a prompt
    said.input_ids[-2] = known  # and in a reply
    said.targets.token[0] = known
    batch = collate([said], MediaReader({}), {})
    exported = export_hf(ours, hf, TEMPLATE, [batch], tmp_path / "out")
    assert exported.layout == type(ours.decoder).__name__
    loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert batch.prompts is not None
    theirs = loaded(input_ids=batch.prompts.input_ids, decoder_input_ids=batch.input_ids).logits
    # fp32: merging rounds each weight, and two stacks of layers amplify that
    torch.testing.assert_close(theirs, ours.logits(batch), atol=5e-3, rtol=1e-3)
    read: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read.convert_tokens_to_ids("<a>") == known


def test_a_head_of_its_own_survives_new_rows() -> None:
    decoder: Any = model("flan-t5")
    before = decoder.lm_head.weight.detach().clone()
    size = len(before)
    grow_vocabulary(decoder, size + 3, size)
    assert not heads_tied(decoder)
    assert torch.equal(decoder.lm_head.weight[:size], before)
    ids = torch.tensor([[size + 1, 5]])
    together = decoder(input_ids=ids, decoder_input_ids=ids).logits
    assert together.shape == (1, 2, size + 3)
    assert decoder.encoder.embed_tokens.weight is decoder.shared.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_model_has_the_names_and_shapes_of_a_full_one(family: str, tmp_path: Path) -> None:
    settings = config(tmp_path, family, lora=LoraConfig(r=2), new_tokens=("<a>",))
    hf = load_tokenizer(settings.decoder)
    empty, full = build_model(settings, hf, empty=True), build_model(settings, hf)
    shapes = [{name: p.shape for name, p in built.named_parameters()} for built in (empty, full)]
    assert shapes[0] == shapes[1]
    assert empty.decoder.device.type == "meta"
    assert rehearsal_problem(empty, hf) is None


def test_towers_beside_an_encoder_decoder_are_refused_in_an_export(tmp_path: Path) -> None:
    ours = model_with_tower(Clip(str(clip_folder(tmp_path / "clip"))), decoder=model("t5"))
    said = "T5ForConditionalGeneration is an encoder-decoder"
    assert said in str(rehearsal_problem(ours, tokenizer("t5")))
    with pytest.raises(ConfigError, match=said):
        export_hf(ours, tokenizer("t5"), TEMPLATE, [batch_of("t5", ROWS)], tmp_path / "out")


@pytest.mark.parametrize("which", ["selective", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_no_gradient(family: str, which: Any) -> None:
    ours = ready(model(family, dropout_rate=0.0) if family != "bart" else model(family, dropout=0.0)).train()
    batch = batch_of(family, ROWS)
    plain = ours(batch).sum()
    expected = gradients(plain, ours)
    ours.checkpoint_activations(which)
    again = ours(batch).sum()
    alike([again, *gradients(again, ours)], [plain, *expected])


def test_where_replies_begin_is_the_models_to_say(tmp_path: Path) -> None:
    path = folder(tmp_path, "t5")
    assert decoder_start(DecoderConfig(name=str(path))) == tokenizer("t5").pad_token_id
    stated = (path / "config.json").read_text()
    (path / "config.json").write_text(stated.replace('"decoder_start_token_id"', '"other"'))
    with pytest.raises(ConfigError, match=r"config\.json states no decoder_start_token_id"):
        decoder_start(DecoderConfig(name=str(path)))
