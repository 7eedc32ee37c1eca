from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from mmsft.config import LoraConfig
from mmsft.modalities import Clip
from mmsft.modalities.spec import Modality
from mmsft.model.fusion import MultimodalModel
from mmsft.model.names import canonical, fresh, named_parameters
from mmsft.model.new_tokens import add_new_tokens
from mmsft.model.tuning.lora import add_lora
from tests.model.blip import blip2, ours
from tests.model.test_fusion import tiny_sizes
from tests.model.test_tuning import gpt2
from tests.model.tiny import clip_folder, llama, llava_like, model_with_tower

LLAMA_LAYER = [
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
]
QWEN2_LAYER = [
    "self_attn.q_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.weight",
    "self_attn.v_proj.bias",
    *LLAMA_LAYER[3:],
]
GPT2_LAYER = [
    f"{part}.{kind}"
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for kind in ("weight", "bias")
]
CLIP_LAYER = [
    f"{part}.{kind}"
    for part in (
        "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj",
        "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2",
    )
    for kind in ("weight", "bias")
]  # fmt: skip

BLIP_LAYER = [
    f"{part}.{kind}"
    for part in ("self_attn.qkv", "self_attn.projection", "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")
    for kind in ("weight", "bias")
]
QFORMER_LAYER = [
    f"{part}.{kind}"
    for part in (
        "attention.attention.query", "attention.attention.key", "attention.attention.value",
        "attention.output.dense", "attention.output.LayerNorm",
        "crossattention.attention.query", "crossattention.attention.key", "crossattention.attention.value",
        "crossattention.output.dense", "crossattention.output.LayerNorm",
        "intermediate_query.dense", "output_query.dense", "output_query.LayerNorm",
    )
    for kind in ("weight", "bias")
]  # fmt: skip


def layers(prefix: str, count: int, names: list[str]) -> list[str]:
    return [f"{prefix}.{layer}.{name}" for layer in range(count) for name in names]


def decoder_names(decoder: Any) -> list[str]:
    return list(named_parameters(MultimodalModel(decoder)))


def test_the_names_of_llama_are_pinned() -> None:
    assert decoder_names(llama()) == [
        "decoder.model.embed_tokens.weight",
        *layers("decoder.model.layers", 2, LLAMA_LAYER),
        "decoder.model.norm.weight",
        "decoder.lm_head.weight",
    ]


def test_the_names_of_qwen2_are_pinned() -> None:
    assert decoder_names(Qwen2ForCausalLM(Qwen2Config(**tiny_sizes(), tie_word_embeddings=True))) == [
        "decoder.model.embed_tokens.weight",
        *layers("decoder.model.layers", 2, QWEN2_LAYER),
        "decoder.model.norm.weight",
    ]


def test_the_names_of_gpt2_are_pinned() -> None:
    assert decoder_names(gpt2()) == [
        "decoder.transformer.wte.weight",
        "decoder.transformer.wpe.weight",
        *layers("decoder.transformer.h", 2, GPT2_LAYER),
        "decoder.transformer.ln_f.weight",
        "decoder.transformer.ln_f.bias",
    ]


def test_the_names_of_a_clip_tower_and_its_adapter_are_pinned(tmp_path: Path) -> None:
    names = [name for name in named_parameters(llava_like(tmp_path)) if name.startswith("towers.")]
    encoder = "towers.image.encoder"
    assert names == [
        f"{encoder}.embeddings.class_embedding",
        f"{encoder}.embeddings.patch_embedding.weight",
        f"{encoder}.embeddings.position_embedding.weight",
        f"{encoder}.pre_layrnorm.weight",
        f"{encoder}.pre_layrnorm.bias",
        *layers(f"{encoder}.encoder.layers", 2, CLIP_LAYER),
        "towers.image.adapter.layers.0.weight",
        "towers.image.adapter.layers.0.bias",
        "towers.image.adapter.layers.2.weight",
        "towers.image.adapter.layers.2.bias",
    ]


def test_the_names_of_a_blip_tower_and_its_qformer_are_pinned(tmp_path: Path) -> None:
    names = [name for name in named_parameters(ours(blip2(), tmp_path)) if name.startswith("towers.")]
    encoder, adapter = "towers.image.encoder", "towers.image.adapter"
    assert names == [
        f"{encoder}.embeddings.class_embedding",
        f"{encoder}.embeddings.position_embedding",
        f"{encoder}.embeddings.patch_embedding.weight",
        f"{encoder}.embeddings.patch_embedding.bias",
        *layers(f"{encoder}.encoder.layers", 2, BLIP_LAYER),
        f"{encoder}.post_layernorm.weight",
        f"{encoder}.post_layernorm.bias",
        f"{adapter}.frame.queries",
        f"{adapter}.frame.qformer.layernorm.weight",
        f"{adapter}.frame.qformer.layernorm.bias",
        *(
            f"{adapter}.frame.qformer.encoder.layer.{layer}.{name}"
            for layer in range(3)
            for name in QFORMER_LAYER
            if layer % 2 == 0 or not name.startswith("crossattention")
        ),
        f"{adapter}.projection.layers.weight",
        f"{adapter}.projection.layers.bias",
    ]


def test_the_names_of_timms_efficientnet_lite0_are_pinned() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    names = [canonical(f"towers.image.encoder.model.{name}") for name, _ in model.named_parameters()]
    prefix = "towers.image.encoder."
    assert names[:3] == [f"{prefix}conv_stem.weight", f"{prefix}bn1.weight", f"{prefix}bn1.bias"]
    assert names[-3:] == [f"{prefix}conv_head.weight", f"{prefix}bn2.weight", f"{prefix}bn2.bias"]
    blocks = Counter(name.split(".")[4] for name in names if ".blocks." in name)
    assert blocks == {"0": 6, "1": 18, "2": 18, "3": 27, "4": 27, "5": 36, "6": 9}
    assert {name.rpartition(".")[0].split(".")[6] for name in names if ".blocks." in name} == {
        "conv_dw", "bn1", "conv_pw", "bn2", "conv_pwl", "bn3",
    }  # fmt: skip


def test_lora_and_new_tokens_stand_apart_and_leave_the_base_names_as_they_were() -> None:
    decoder = llama(tie_word_embeddings=False)
    base = decoder_names(decoder)
    add_new_tokens(decoder, 50, 2)
    add_lora(decoder, LoraConfig(r=2, targets=("q_proj",), dora=True))
    tuned = decoder_names(decoder)
    added = {"decoder.new_tokens.input", "decoder.new_tokens.output"} | {
        f"decoder.lora.model.layers.{layer}.self_attn.q_proj.{part}"
        for layer in (0, 1)
        for part in ("A", "B", "magnitude")
    }
    assert set(tuned) == set(base) | added
    assert fresh(tuned) == added


@pytest.mark.parametrize(
    ("upstream", "stable"),
    [
        (
            "towers.image.encoder.model.vision_model.embeddings.class_embedding",
            "towers.image.encoder.embeddings.class_embedding",
        ),
        ("towers.image.encoder.model.embeddings.class_embedding", "towers.image.encoder.embeddings.class_embedding"),
        ("module.decoder.lm_head.weight", "decoder.lm_head.weight"),
        ("_orig_mod.decoder.lm_head.weight", "decoder.lm_head.weight"),
        ("decoder.model.layers.0._checkpoint_wrapped_module.mlp.weight", "decoder.model.layers.0.mlp.weight"),
        ("towers.touch.encoder.lstm.weight_ih_l0", "towers.touch.encoder.lstm.weight_ih_l0"),
    ],
)
def test_accidents_of_upstream_leave_no_trace_in_a_name(upstream: str, stable: str) -> None:
    assert canonical(upstream) == stable


def test_two_parameters_of_one_name_are_an_error() -> None:
    model = nn.Module()
    model.register_module("module", nn.Linear(1, 1))
    model.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="two parameters are called 'weight'"):
        named_parameters(model)


def test_adapters_are_fresh_and_towers_and_decoders_are_not(tmp_path: Path) -> None:
    modality: Modality = Clip(str(clip_folder(tmp_path)))
    assert all(".adapter." in name for name in fresh(named_parameters(model_with_tower(modality))))
    assert not fresh(named_parameters(MultimodalModel(llama())))
