"""Whisper tiny.en as a folder of transformers, from the file of CTranslate2 that a package carries."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmsft.assets.ctranslate2 import read_ctranslate2

if TYPE_CHECKING:
    import torch

_HEADS: Final = 6
_END: Final = 50256
_START: Final = 50257
_NO_TIMESTAMPS: Final = 50362
_PLAIN: Final = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings": "embed_tokens",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_FUSED: Final = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
_ENDS: Final = {"gamma": ".weight", "beta": ".bias", "weight": ".weight", "bias": ".bias", "encodings": ""}


def prepare_whisper(folder: Path) -> None:
    """Writes model, feature extractor and tokenizer where the package's files were."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = dict(transformers_names(read_ctranslate2(folder / "model.bin")))
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    model = WhisperForConditionalGeneration(WhisperConfig(**_shape(tensors), **_tokens(), suppress_tokens=None))
    model.load_state_dict(tensors, strict=True)
    model.generation_config = GenerationConfig(
        **_tokens(),
        max_length=model.config.max_target_positions,
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=_NO_TIMESTAMPS,
        suppress_tokens=stated["suppress_ids"],
        begin_suppress_tokens=stated["suppress_ids_begin"],
        alignment_heads=stated["alignment_heads"],
    )
    for file in ("config.json", "model.bin", "vocabulary.txt"):
        (folder / file).unlink()
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(folder)
    named = {"tokenizer_class": "WhisperTokenizer", "language": None, "task": None}
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **ends}, indent=2), encoding="utf-8")


def transformers_names(tensors: "Mapping[str, torch.Tensor]") -> "Iterator[tuple[str, torch.Tensor]]":
    """Yields a Whisper's tensors by transformers' names, as float32; what CTranslate2 fuses comes apart.

    Queries, keys and values lie behind one another in one matrix there; keys have no bias, and zeros in its place.
    """
    for name, tensor in tensors.items():
        side, _, rest = name.partition("/")
        layer, _, inside = rest.partition("/") if rest.startswith("layer_") and rest[6].isdigit() else ("", "", rest)
        place = f"model.{side}." + (f"layers.{layer.removeprefix('layer_')}." if layer else "")
        part, _, end = inside.rpartition("/")
        if end not in _ENDS or tensor.dim() == 0:
            continue
        if part in _FUSED:
            names = _FUSED[part]
            for one, chunk in zip(names, tensor.float().chunk(len(names)), strict=True):
                if not (one.endswith("k_proj") and end == "bias"):
                    yield f"{place}{one}{_ENDS[end]}", chunk.contiguous()
        else:
            yield f"{place}{_PLAIN.get(inside) or _PLAIN[part] + _ENDS[end]}", tensor.float()


def _shape(tensors: "Mapping[str, torch.Tensor]") -> dict[str, Any]:
    """Returns the sizes of the model as `WhisperConfig` has them."""
    vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
    layers = {side: len({name.split(".")[3] for name in tensors if name.startswith(f"model.{side}.layers.")})
              for side in ("encoder", "decoder")}  # fmt: skip
    inner = len(tensors["model.encoder.layers.0.fc1.weight"])
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        **{f"{side}_layers": count for side, count in layers.items()},
        **{f"{side}_attention_heads": _HEADS for side in layers},
        **{f"{side}_ffn_dim": inner for side in layers},
    }


def _tokens() -> dict[str, Any]:
    return {"bos_token_id": _START, "decoder_start_token_id": _START, "eos_token_id": _END, "pad_token_id": _END}
