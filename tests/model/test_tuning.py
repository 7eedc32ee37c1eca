from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from mmsft.config import DecoderConfig, LoraConfig, ModelConfig
from mmsft.errors import ConfigError
from mmsft.model.build import build_model
from mmsft.model.decoder import load_tokenizer
from mmsft.model.export import plain_decoder
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import named_parameters
from mmsft.model.new_tokens import add_new_tokens
from mmsft.model.tuning.lora import add_lora, skip_idle_lora, targets
from tests.model.tiny import Row, batch_of, decoder_folder, llama, llava_like, mixed_rows


def stir(model: nn.Module, *parts: str) -> None:
    """Gives the fresh parameters values that show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in parts):
                parameter.normal_(std=0.3)


def gpt2() -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    return model


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}])
@torch.no_grad()
def test_fresh_lora_changes_nothing_and_merged_equals_unmerged(make: Any, options: dict[str, bool]) -> None:
    decoder = make()
    ids = torch.tensor([[1, 5, 6, 7]])
    before = decoder(input_ids=ids).logits
    add_lora(decoder, LoraConfig(r=4, **options))
    fresh = decoder(input_ids=ids).logits
    stir(decoder, "lora_A", "lora_B")
    tuned = decoder(input_ids=ids).logits
    merged = plain_decoder(decoder)
    # fp32: DoRA divides by norms that are 1 only to rounding; a merged weight sums in another order.
    torch.testing.assert_close(fresh, before, atol=1e-5, rtol=1e-5)
    assert (tuned - before).abs().max() > 0.01
    # The tied or absent buffers that a class computes are made anew where the model is loaded.
    loaded = type(decoder)(decoder.config).eval()
    loaded.load_state_dict(merged.state_dict())
    torch.testing.assert_close(loaded(input_ids=ids).logits, tuned, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoder(input_ids=ids).logits, tuned, atol=0, rtol=0)


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_lora_adds_survives_where_the_layer_s_output_is_rounded(held: torch.dtype) -> None:
    decoder = llama(hidden_size=64)
    for parameter in decoder.parameters():
        parameter.data = parameter.data.to(held)
    add_lora(decoder, LoraConfig(r=4))
    layer = decoder.get_submodule("model.layers.0.self_attn.q_proj")
    x = torch.randn(256, 64, dtype=held)

    def with_b(size: float, rounded: bool) -> Tensor:
        torch.manual_seed(0)
        layer.get_parameter("lora_B.default.weight").normal_(std=size)
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            out: Tensor = layer(x) if rounded else layer.float()(x.float())
        return out.double()

    # Less than a tenth of what bf16 can tell apart at 1.
    rounded = with_b(1e-4, True) - with_b(0, True)
    exact = with_b(1e-4, False) - with_b(0, False)
    assert exact.norm() / with_b(0, False).norm() < 1e-3
    # 1 but for roundings that fall either way, of 16,384 numbers; added to a rounded output, it would be 0.24.
    assert abs(float((rounded * exact).sum() / exact.square().sum()) - 1) < 0.15


@pytest.mark.parametrize("options", [{}, {"dropout": 0.4}])
@pytest.mark.parametrize("all_learns", [False, True])
def test_gradients_under_autocast_are_those_of_fp32_to_the_rounding_of_bf16(
    options: dict[str, float], all_learns: bool
) -> None:
    decoder = llama(hidden_size=64, attention_bias=True)
    add_lora(decoder, LoraConfig(r=4, **options))
    layer = decoder.get_submodule("model.layers.0.self_attn.q_proj").train()
    stir(layer, "lora_A", "lora_B", "bias")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(all_learns or "lora_" in name)
    x, weights = torch.randn(2, 30, 64, requires_grad=True), torch.randn(2, 30, 64)

    def gradients(rounded: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            out: Tensor = layer(x)
        assert out.dtype == (torch.bfloat16 if rounded else torch.float32)
        learn = {"x": x, **{name: it for name, it in layer.named_parameters() if it.requires_grad}}
        found = torch.autograd.grad((out.float() * weights).sum(), list(learn.values()))
        return dict(zip(learn, found, strict=True))

    rounded, exact = gradients(True), gradients(False)
    assert len(exact) == (5 if all_learns else 3)
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        # Inputs, outputs and what is between them are rounded to 8 bits each; the errors of many terms cancel.
        assert (rounded[name] - gradient).norm() < 1e-2 * gradient.norm(), name


def test_lora_lands_on_every_linear_layer_of_the_decoder_but_its_head_and_on_no_tower(tmp_path: Path) -> None:
    model = llava_like(tmp_path)
    add_lora(model.decoder, LoraConfig(r=2))
    hit = {
        name.rpartition(".")[0].removeprefix("decoder.lora.") for name in named_parameters(model) if ".lora." in name
    }
    kinds = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    kinds += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert hit == {f"model.layers.{layer}.{kind}" for layer in (0, 1) for kind in kinds}
    assert not any("lora" in name for name, _ in model.towers.named_parameters())


def test_targets_are_last_parts_globs_or_all() -> None:
    decoder = llama()
    assert targets(decoder, ("q_proj",)) == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert targets(decoder, ("*.1.mlp.up*",)) == ["model.layers.1.mlp.up_proj"]
    assert "lm_head" not in targets(decoder, ("all-linear",))
    assert targets(decoder, ("q_proj", "all-linear")) == targets(decoder, ("all-linear",))


@pytest.mark.parametrize("pattern", ["q_prj", "encoder.q_proj", "proj", "*.self_attn"])
def test_a_target_that_names_no_layer_is_an_error_that_lists_the_layers(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"names no linear layer of LlamaForCausalLM.*q_proj"):
        targets(llama(), ("k_proj", pattern))


def test_lora_is_held_in_fp32_beside_bf16_weights() -> None:
    decoder: Any = llama()
    decoder.to(torch.bfloat16)
    add_lora(decoder, LoraConfig(r=2))
    kinds = {parameter.dtype for name, parameter in decoder.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}
    assert decoder(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.bfloat16


@torch.no_grad()
def test_lora_that_neither_learns_nor_adds_anything_is_not_computed() -> None:
    ids = torch.tensor([[1, 5, 6, 7]])
    decoder = llama()
    plain = decoder(input_ids=ids).logits
    add_lora(decoder, LoraConfig(r=2))
    layers = [module for module in decoder.modules() if isinstance(module, LoraLayer)]
    calls: list[object] = []
    for layer in layers:
        layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
    own = [parameter for name, parameter in decoder.named_parameters() if "lora_" in name]

    def computed() -> int:
        calls.clear()
        skip_idle_lora(decoder)
        decoder(input_ids=ids)
        return len(calls)

    assert computed() == len(layers)  # it learns
    decoder.requires_grad_(False)
    assert computed() == 0
    torch.testing.assert_close(decoder(input_ids=ids).logits, plain, atol=0, rtol=0)
    own[0].requires_grad_(True)
    assert computed() == 1
    assert [parameter.requires_grad for parameter in own] == [True] + [False] * (len(own) - 1)
    own[0].requires_grad_(False)
    stir(decoder, "layers.1.mlp.up_proj.lora_B")
    assert computed() == 1  # it adds something


def build(folder: Path, decoder: PreTrainedModel, **options: Any) -> MultimodalModel:
    config = DecoderConfig(name=str(decoder_folder(folder, decoder)), **options)
    return build_model(ModelConfig(decoder=config), load_tokenizer(config))


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_learn_with_lora_and_the_old_rows_stay(tmp_path: Path, tied: bool) -> None:
    model = build(
        tmp_path, llama(tie_word_embeddings=tied), new_tokens=("<a>", "<b>"), lora=LoraConfig(r=2, targets=("q_proj",))
    )
    names = named_parameters(model)
    new = [name for name in names if name.startswith("decoder.new_tokens.")]
    assert new == ["decoder.new_tokens.input"] + ([] if tied else ["decoder.new_tokens.output"])
    for name, parameter in names.items():
        parameter.requires_grad_(name in new or name.startswith("decoder.lora."))
    model(batch_of([Row([1, 50, 5, 51, 6])])).sum().backward()
    assert all(bool(names[name].grad.abs().sum(1).all()) for name in new)  # type: ignore[union-attr]
    assert names["decoder.model.embed_tokens.weight"].grad is None


@pytest.mark.parametrize("make", [lambda: llama(tie_word_embeddings=True), llama, gpt2])
def test_rows_apart_compute_what_rows_in_the_matrix_compute(make: Any) -> None:
    decoder = make()
    add_new_tokens(decoder, 50, 3)
    stir(decoder, "new_input", "new_output")
    ids = torch.tensor([[1, 50, 5, 51, 52]])
    whole = type(decoder)(decoder.config).eval()
    whole.load_state_dict(plain_decoder(decoder).state_dict())
    # fp32: one product in two pieces.
    torch.testing.assert_close(decoder(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_new_tokens_begin_as_the_mean_of_the_old_and_fill_rows_that_the_tokenizer_left_free(tmp_path: Path) -> None:
    model = build(tmp_path, llama(vocab_size=64), new_tokens=("<a>",))
    embeddings: Any = model.decoder.get_input_embeddings()
    weight: Tensor = embeddings.weight
    assert weight.shape == (64, 16)
    torch.testing.assert_close(weight[50], weight[:50].mean(0))


def test_a_new_token_that_the_tokenizer_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'w3' is in the tokenizer .* already \(id 6\)"):
        load_tokenizer(DecoderConfig(name=str(decoder_folder(tmp_path)), new_tokens=("<a>", "w3")))


def test_a_decoder_with_fewer_rows_than_its_tokenizer_has_tokens_grows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(tmp_path, llama(vocab_size=40))
    assert model.logits(batch_of([Row([1, 49])])).shape[-1] == 50
    assert "the tokenizer has 50 tokens and the decoder 40" in caplog.text


def test_towers_are_not_reached_by_the_loss_of_lora_alone(tmp_path: Path) -> None:
    model = llava_like(tmp_path)
    add_lora(model.decoder, LoraConfig(r=2))
    for name, parameter in named_parameters(model).items():
        parameter.requires_grad_(name.startswith("decoder.lora."))
    model(batch_of(mixed_rows())).sum().backward()
    assert {name for name, p in named_parameters(model).items() if p.grad is not None} == {
        name for name in named_parameters(model) if name.startswith("decoder.lora.")
    }
