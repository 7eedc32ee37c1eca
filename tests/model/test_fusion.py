import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from mmsft.adapters import Linear
from mmsft.errors import AlignmentError, DataError
from mmsft.modalities.spec import Features, File, Modality, Options
from mmsft.model.fusion import MultimodalModel
from mmsft.model.nll import nll
from mmsft.types import Grid
from tests.model.tiny import Row, batch_of, image, llama, llama_config, llava_like, mixed_rows, model_with_tower


@dataclass(frozen=True)
class Toy(Modality):
    """A modality whose encoder counts what it is given."""

    def probe(self, file: File, options: Options) -> Grid:
        return Grid(1, 2, 2)

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        return self.blank(self.probe(file, options))

    def blank(self, grid: Grid) -> dict[str, Tensor]:
        return {"pixels": torch.zeros(3, 8, 8)}

    def encoder(self) -> nn.Module:
        return ToyEncoder()


class ToyEncoder(nn.Module):
    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.width, 4, 4)
        self.norm = nn.BatchNorm2d(self.width)
        self.drop = nn.Dropout(0.5)
        self.seen: list[int] = []
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        self.seen.append(len(batch["pixels"]))
        self.modes.append((self.drop.training, self.norm.training, torch.is_grad_enabled()))
        return Features(self.drop(self.norm(self.conv(batch["pixels"]))).flatten(2).transpose(1, 2))


def toy_model() -> tuple[MultimodalModel, ToyEncoder]:
    model = model_with_tower(Toy(), Linear())
    encoder: Any = model.get_submodule("towers.image.encoder")
    return model, encoder


def test_a_picture_that_appears_three_times_is_encoded_once() -> None:
    model, encoder = toy_model()
    slots = [-1] * 4
    model(batch_of([Row([1, *slots, 5, *slots, 6], [image(1), image(1)]), Row([1, *slots, 7], [image(1)])]))
    assert encoder.seen == [1]


def test_a_frozen_encoder_runs_without_gradient_and_keeps_its_statistics_in_training() -> None:
    model, encoder = toy_model()
    encoder.requires_grad_(False)
    before = encoder.norm.running_mean.clone() if encoder.norm.running_mean is not None else None
    model.train()
    model(batch_of(mixed_rows())).sum().backward()
    assert encoder.modes == [(False, False, False)]
    assert torch.equal(encoder.norm.running_mean, before)  # type: ignore[arg-type]


def test_a_learning_encoder_trains_but_for_its_batch_norm() -> None:
    model, encoder = toy_model()
    model.train()
    model(batch_of(mixed_rows()))
    assert encoder.modes == [(True, False, True)]


def test_media_stand_in_their_slots_and_text_embeddings_stay_exactly() -> None:
    model, _ = toy_model()
    batch = batch_of(mixed_rows())
    embedded = model.embed(batch)
    plain = model.decoder.get_input_embeddings()(batch.input_ids)
    is_slot = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    is_slot[batch.media["image"].slots] = True
    assert torch.equal(embedded.flatten(0, 1)[~is_slot], plain.flatten(0, 1)[~is_slot])
    tower: Any = model.towers["image"]
    tokens = tower(batch.media["image"].groups[0])
    expected = torch.cat([tokens[use.index] for use in batch.media["image"].uses])
    assert torch.equal(embedded.flatten(0, 1)[is_slot], expected)


def test_a_medium_with_too_few_slots_is_an_error_with_row_and_both_numbers() -> None:
    model, _ = toy_model()
    batch = batch_of([Row([1, 5, 6]), Row([1, -1, -1, -1, 7], [image(1)])])
    with pytest.raises(AlignmentError, match=r"rows.jsonl:2: .*1\.png> has 3 slots .* gives 4 tokens"):
        model(batch)


def test_slots_without_a_medium_are_an_error_with_both_numbers() -> None:
    model, _ = toy_model()
    batch = batch_of([Row([1, *[-1] * 4, 7], [image(1)])])
    media = batch.media["image"]
    cut = dataclasses.replace(batch, media={"image": dataclasses.replace(media, slots=media.slots[:3])})
    with pytest.raises(AlignmentError, match=r"rows.jsonl:1 .*3 image slots .* tokens for 4"):
        model(cut)


def test_media_without_a_tower_are_an_error_with_the_row() -> None:
    model = MultimodalModel(llama())
    with pytest.raises(DataError, match=r"rows.jsonl:2: there is no image tower \(towers: none"):
        model(batch_of([Row([1, 5]), Row([1, *[-1] * 4, 7], [image(1)])]))


def test_a_text_batch_gives_every_learning_parameter_of_a_tower_a_gradient_of_zero(tmp_path: Path) -> None:
    model = llava_like(tmp_path)
    alone = MultimodalModel(model.decoder)
    batch = batch_of([Row([1, 5, 6, 7])])
    losses = model(batch)
    assert torch.equal(losses, alone(batch))
    losses.sum().backward()
    gradients = [parameter.grad for parameter in model.towers.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_frozen_tower_is_not_run_for_a_text_batch() -> None:
    model, encoder = toy_model()
    model.towers.requires_grad_(False)
    model(batch_of([Row([1, 5, 6, 7])]))
    assert encoder.seen == []


def test_the_id_of_padding_decides_nothing() -> None:
    model, _ = toy_model()
    batch = batch_of(mixed_rows())
    other = dataclasses.replace(batch, input_ids=torch.where(batch.mask, batch.input_ids, 2))
    assert torch.equal(model(batch), model(other))


def gemma2() -> PreTrainedModel:
    config = Gemma2Config(**tiny_sizes(), head_dim=4, final_logit_softcapping=1.0, initializer_range=0.5)
    return Gemma2ForCausalLM(config)


def granite() -> PreTrainedModel:
    return GraniteForCausalLM(GraniteConfig(**tiny_sizes(), logits_scaling=4.0))


def gpt2(layers: int = 2) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=layers, n_head=4, n_positions=64))


def falcon() -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    return FalconForCausalLM(FalconConfig(**sizes, alibi=True, new_decoder_architecture=False))


def tiny_sizes() -> dict[str, Any]:
    return {
        name: value
        for name, value in llama_config().to_dict().items()
        if name
        in {
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads",
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "apart"), [(llama, True), (gpt2, True), (gemma2, False), (granite, False), (falcon, True)]
)
def test_the_loss_equals_that_of_the_decoder_itself_whether_or_not_its_logits_are_capped(
    make: Any, apart: bool
) -> None:
    decoder = make().eval()
    model = MultimodalModel(decoder)
    model.find_head()
    batch = batch_of([Row([1, 5, 6, 7, 8]), Row([1, 9, 10])])
    labels = torch.where(batch.mask, batch.input_ids, -100)
    expected = decoder(input_ids=batch.input_ids, attention_mask=batch.mask.long(), labels=labels).loss
    assert model.head_apart is apart
    # fp32: the same products, summed in another order.
    torch.testing.assert_close(model(batch).mean(), expected, atol=1e-5, rtol=1e-5)


def test_finding_the_head_leaves_the_mode_as_it_was() -> None:
    model = MultimodalModel(llama()).train()
    model.decoder.eval()
    model.find_head()
    assert (model.training, model.decoder.training, model.decoder.base_model.training) == (True, False, False)


def test_chunked_losses_and_gradients_equal_whole_ones() -> None:
    head = nn.Linear(16, 50)
    hidden = torch.randn(23, 16, requires_grad=True)
    token = torch.randint(0, 50, (23,))
    whole = nll(hidden, token, head, vocabulary=50)
    whole_gradient = torch.autograd.grad(whole.sum(), [hidden, head.weight])
    chunked = nll(hidden, token, head, vocabulary=50, chunk=50 * 5)
    chunked_gradient = torch.autograd.grad(chunked.sum(), [hidden, head.weight])
    # fp32: a product of fewer rows is summed in another order.
    for one, other in zip([whole, *whole_gradient], [chunked, *chunked_gradient], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_losses_are_fp32_under_bf16_autocast_and_near_those_in_fp32(tmp_path: Path) -> None:
    model = llava_like(tmp_path)
    batch = batch_of(mixed_rows())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    # bf16 keeps 8 bits: 1 % of a loss of about 4, through two layers.
    torch.testing.assert_close(losses, model(batch), atol=0.3, rtol=0.1)


def test_a_batch_without_targets_gives_no_losses() -> None:
    model = MultimodalModel(llama())
    assert model(batch_of([Row([1, 5, 6], learn_from=3)])).shape == (0,)


@pytest.mark.parametrize("which", ["selective", "full"])
def test_activation_checkpointing_changes_no_gradient_of_the_projector(tmp_path: Path, which: Any) -> None:
    model = llava_like(tmp_path).train()
    model.decoder.requires_grad_(False)
    batch = batch_of(mixed_rows())

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(batch).sum().backward()
        return [parameter.grad.clone() for parameter in model.towers.parameters() if parameter.grad is not None]

    plain = gradients()
    model.checkpoint_activations(which)
    checkpointed = gradients()
    assert plain
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("make", [lambda: llama(num_hidden_layers=5), lambda: gpt2(layers=5)], ids=["llama", "gpt2"])
def test_which_layers_are_computed_a_second_time(make: Callable[[], PreTrainedModel]) -> None:
    model = MultimodalModel(make())
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for which, expected in (("selective", [True, False] * 2 + [True]), ("full", [True] * 5), ("none", [False] * 5)):
        model.checkpoint_activations(cast(Any, which))
        assert [layer.gradient_checkpointing for layer in layers] == expected


def test_parts_count_what_learns_and_what_is_frozen() -> None:
    model, encoder = toy_model()
    encoder.requires_grad_(False)
    found = {part.name: part for part in model.parts()}
    assert list(found) == ["decoder", "towers.image.encoder", "towers.image.adapter"]
    assert found["towers.image.encoder"].frozen == 3 * 6 * 16 + 6 + 12
    assert found["towers.image.adapter"].learning == found["towers.image.adapter"].total == 6 * 16 + 16
    assert sum(part.total for part in found.values()) == sum(p.numel() for p in model.parameters())
