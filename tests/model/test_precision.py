"""Decoders whose matrices are held in 16 bits."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmsft.model.fusion import MultimodalModel
from mmsft.model.generation import generate
from tests.model.tiny import Row, batch_of, llama, llava_like, mixed_rows
from tests.parity.compare import padded
from tests.parity.families import NOT_PACKED, PACKED
from tests.parity.test_families import trees

FAMILIES = {**PACKED, **{name: family for name, (family, _) in NOT_PACKED.items()}}
# Their embeddings are scaled before they are widened, or their experts add up in the type of their matrices.
ROUNDED_ELSEWHERE = {
    "biogpt", "codegen", "deepseek_v3", "gemma", "gemma2", "gemma3_text", "gpt_oss", "jamba", "minimax", "mixtral",
    "phimoe", "qwen3_moe", "qwen3_next", "xglm",
}  # fmt: skip


def losses(decoder: PreTrainedModel) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return torch.cat([MultimodalModel(decoder)(batch) for batch in padded(trees())])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_held_in_bf16_computes_what_autocast_computes_over_fp32(name: str) -> None:
    half = FAMILIES[name].decoder(name).bfloat16()
    full = copy.deepcopy(half).float()
    difference = float((losses(half) - losses(full)).abs().max())
    # Of losses around 5, where bf16 tells 0.03 apart.
    assert difference < 0.2 if name in ROUNDED_ELSEWHERE else difference == 0


def test_what_its_layers_add_up_is_fp32() -> None:
    decoder = llama(num_hidden_layers=3).bfloat16()
    seen: list[torch.dtype] = []
    for layer in decoder.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    losses(decoder)
    assert seen == [torch.float32] * 3
    assert {parameter.dtype for parameter in decoder.parameters() if parameter.ndim < 2} == {torch.float32}
    assert {parameter.dtype for parameter in decoder.parameters() if parameter.ndim > 1} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_towers_beside_it_compute_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = llava_like(tmp_path)
    model = MultimodalModel(whole.decoder.to(dtype), dict(whole.towers))  # type: ignore[arg-type]
    seen: list[torch.dtype] = []
    model.towers["image"].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    model(batch_of(mixed_rows()))
    model.logits(batch_of(mixed_rows()))
    assert seen == [torch.float32] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_without_an_autocast_around_it_and_generates(dtype: torch.dtype) -> None:
    model = MultimodalModel(llama().to(dtype))  # type: ignore[arg-type] # transformers' stubs know no dtype here
    model.find_head()
    batch = batch_of([Row([1, 5, 6, 7])])
    exact = MultimodalModel(copy.deepcopy(model.decoder).float())
    # 16 bits beside fp32, on losses around 4.
    torch.testing.assert_close(model(batch), exact(batch), atol=0.1, rtol=0)
    assert len(generate(model, batch, max_new_tokens=3, stop_ids=())[0]) == 3
