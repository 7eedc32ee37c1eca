"""The probe lets no decoder into packs that computes something else there; and what packs leave behind."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

from mmsft.config import DecoderConfig
from mmsft.errors import ConfigError
from mmsft.model.attention import Trees
from mmsft.model.decoder import load_decoder
from mmsft.model.fusion import MultimodalModel
from mmsft.model.generation import generate
from mmsft.model.packs import why_not_packed
from mmsft.objectives import sft
from mmsft.types import Batch, Pack
from tests.data.chains import chain
from tests.makers import needs_assets
from tests.model.tiny import Row, batch_of, llama, llama_config
from tests.parity.compare import packed
from tests.parity.families import NOT_PACKED, PACKED

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
Mutation = Callable[[pytest.MonkeyPatch], None]


def held_in(decoder: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    nn.Module.to(decoder, dtype)
    return decoder


@DTYPES
def test_a_decoder_that_attends_by_the_interface_takes_packs(dtype: torch.dtype) -> None:
    for decoder in (llama(), PACKED["mistral"].decoder("mistral")):
        assert why_not_packed(held_in(decoder, dtype)) is None


def test_rounding_under_autocast_is_no_reason_against_packs() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            assert why_not_packed(llama(initializer_range=1.0, num_hidden_layers=6)) is None


@pytest.mark.assets
@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_thirty_layers_of_real_weights_take_packs_however_they_are_held(held: Literal["float32", "bfloat16"]) -> None:
    needs_assets("smollm2-135m-instruct")
    decoder = load_decoder(DecoderConfig(name="asset:smollm2-135m-instruct", dtype=held))
    assert why_not_packed(decoder) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not_packed(decoder) is None


def blind(patch: pytest.MonkeyPatch) -> None:
    """Each token sees all before it, also its neighbours."""

    def attend(trees: Trees, query: Tensor, key: Tensor, value: Tensor, *, scale: float, **how: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)

    patch.setattr(Trees, "attend", attend)


def one_more_is_seen(patch: pytest.MonkeyPatch) -> None:
    """The first token behind a subtree still sees it."""
    right = Trees.__init__

    def init(trees: Trees, pack: Pack, positions: Tensor, size: int) -> None:
        right(trees, replace(pack, until=pack.until + 1), positions, size)

    patch.setattr(Trees, "__init__", init)


def own_positions(patch: pytest.MonkeyPatch) -> None:
    """It counts tokens itself, whatever positions it is given."""
    _change(patch, lambda positions: torch.arange(positions.shape[1])[None])


def shifted_branch(patch: pytest.MonkeyPatch) -> None:
    """A branch begins one position too late."""
    late = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    _change(patch, lambda positions: positions + late if positions.shape[1] == len(late) else positions)


def mixed_with_the_token_before(patch: pytest.MonkeyPatch) -> None:
    """Beside attention, a token meets the one that stands before it, as in a convolution."""
    right: Any = modeling_llama.LlamaMLP.forward

    def forward(mlp: Any, x: Tensor) -> Tensor:
        mixed: Tensor = right(mlp, x + 0.5 * F.pad(x, (0, 0, 1, 0))[:, :-1])
        return mixed

    patch.setattr(modeling_llama.LlamaMLP, "forward", forward)


def _change(patch: pytest.MonkeyPatch, positions: Callable[[Tensor], Tensor]) -> None:
    right = modeling_llama.LlamaModel.forward

    def forward(body: Any, *args: Any, position_ids: Tensor, **kwargs: Any) -> Any:
        return right(body, *args, position_ids=positions(position_ids), **kwargs)

    patch.setattr(modeling_llama.LlamaModel, "forward", forward)


@pytest.mark.parametrize("mutate", [blind, own_positions, shifted_branch, mixed_with_the_token_before])
@DTYPES
def test_a_mutated_decoder_is_found_out(mutate: Mutation, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = held_in(llama(), dtype)
    mutate(monkeypatch)
    reason = why_not_packed(decoder) or ""
    expected = "attention on this device differs" if mutate is blind else "differ from those of threads by themselves"
    assert expected in reason


def test_a_single_token_that_sees_one_too_many_is_found_out_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    one_more_is_seen(monkeypatch)
    assert "differ from those of threads by themselves" in (why_not_packed(llama()) or "")


def test_a_window_that_the_layers_do_not_ask_for_is_found_out_however_long() -> None:
    assert why_not_packed(PACKED["mistral"].decoder("mistral", sliding_window=4096)) is None
    family, _ = NOT_PACKED["phimoe"]
    reason = why_not_packed(family.decoder("phimoe", sliding_window=4096))
    assert reason == "its masks have windows of [4096] tokens, its layers ask for none"


def test_a_layer_that_attends_its_own_way_is_found_out() -> None:
    decoder = llama()
    attention = decoder.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **how: (hidden_states, None)
    assert why_not_packed(decoder) == "1 of its 2 layers attend by way of transformers' interface"


def test_states_that_are_no_numbers_are_no_reason_to_trust_a_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trees, "attend", lambda trees, query, *_, **how: query * torch.nan)
    assert "by nan" in (why_not_packed(llama()) or "")


@pytest.mark.parametrize("error", [KeyError("trees"), RuntimeError("no such\nthing"), AttributeError("x"), TypeError()])
def test_whatever_a_familys_code_raises_in_a_pack_is_a_reason(error: Exception) -> None:
    decoder = llama()
    with _raising(decoder, error):
        reason = why_not_packed(decoder) or ""
    assert reason.startswith(f"a pack makes its code fail ({type(error).__name__}")
    assert "\n" not in reason
    assert why_not_packed(decoder) is None


@contextmanager
def _raising(decoder: LlamaForCausalLM, error: Exception) -> Iterator[None]:
    right = decoder.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if "trees" in kwargs:
            raise error
        return right(*args, **kwargs)

    decoder.model.forward = forward
    try:
        yield
    finally:
        decoder.model.forward = right


@pytest.mark.parametrize("error", [None, ValueError("no")])
def test_the_probe_leaves_a_decoder_as_it_was(error: Exception | None) -> None:
    decoder = llama(attention_dropout=0.3).train()
    decoder.model.layers[0].eval()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    modes = [module.training for module in decoder.modules()]
    drawn = torch.get_rng_state()
    with _raising(decoder, error) if error else torch.enable_grad():
        why_not_packed(decoder)
    assert decoder.config._attn_implementation == "sdpa"
    assert [module.training for module in decoder.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in decoder.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


def pack_batch() -> Batch:
    return packed([chain([1, 5, 6, 7, 8]), chain([1, 9, 10])])[0]


def learn(model: MultimodalModel, batch: Batch) -> None:
    sft(model.train(), batch, sources=1).sum.backward()


def test_generation_after_packs_gives_a_fresh_models_tokens_by_padded_attention() -> None:
    model = MultimodalModel(llama())
    fresh = MultimodalModel(copy.deepcopy(model.decoder)).eval()
    model.find_attention()
    learn(model, pack_batch())
    assert model.decoder.config._attn_implementation == "mmsft"
    prompts = batch_of([Row([1, 5, 6, 7]), Row([1, 9])], side="left")
    how: dict[str, Any] = {"max_new_tokens": 8, "stop_ids": [2]}
    assert generate(model, prompts, **how) == generate(fresh, prompts, **how)
    assert model.decoder.config._attn_implementation == "sdpa"


def test_models_that_were_built_from_one_config_do_not_disturb_each_other() -> None:
    config = llama_config()
    packing, padding = (MultimodalModel(LlamaForCausalLM(config)) for _ in range(2))
    expected = gradients(packing, lambda: None)
    packing.zero_grad()
    # Activations that are recomputed ask for the attention again, in the backward pass.
    packing.checkpoint_activations("full")
    assert torch.equal(gradients(packing, lambda: padding(batch_of([Row([1, 5, 6])]))), expected)
    assert padding.decoder.config._attn_implementation == "sdpa"
    assert config._attn_implementation == "sdpa"


def gradients(model: MultimodalModel, between: Callable[[], object]) -> Tensor:
    loss = sft(model.train(), pack_batch(), sources=1).sum
    between()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("tuning", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_of_peft_are_refused_with_what_to_take_instead(tuning: Any) -> None:
    decoder = get_peft_model(llama(), tuning(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ConfigError, match=rf"{tuning.__name__} puts 4 virtual tokens before .* take LoRA"):
        MultimodalModel(decoder)
