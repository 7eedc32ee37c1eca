"""A Whisper that CTranslate2 converted is the Whisper that it was, tensor for tensor."""

import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from mmsft.assets.ctranslate2 import read_ctranslate2
from mmsft.assets.whisper import transformers_names
from mmsft.errors import ConfigError
from tests.makers import fetched

TYPES = {torch.float32: 0, torch.int8: 1, torch.float16: 4}


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def written(file: Path, tensors: dict[str, Tensor], version: int = 6) -> Path:
    """Writes a model as CTranslate2 does."""
    parts = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(tensors))]
    for name, tensor in tensors.items():
        content = tensor.numpy().tobytes()
        parts += [text(name), struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)]
        parts += [struct.pack("<BI", TYPES[tensor.dtype], len(content)), content]
    file.write_bytes(b"".join([*parts, struct.pack("<I", 1), text("decoder/projection/weight"), text("elsewhere")]))
    return file


def converted(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a Whisper of one layer a side as CTranslate2 has it: queries, keys and values in one matrix."""
    found: dict[str, Tensor] = {}

    def copy(theirs: str, ours: str) -> None:
        ends = ("gamma", "beta") if "norm" in ours else ("weight", "bias")
        for end, own in zip(ends, ("weight", "bias"), strict=True):
            found[f"{theirs}/{end}"] = model[f"{ours}.{own}"]

    def fuse(theirs: str, *ours: str) -> None:
        found[f"{theirs}/weight"] = torch.cat([model[f"{name}.weight"] for name in ours])
        width = len(model[f"{ours[0]}.weight"])
        found[f"{theirs}/bias"] = torch.cat([model.get(f"{name}.bias", torch.zeros(width)) for name in ours])

    for side in ("encoder", "decoder"):
        layer, own = f"{side}/layer_0", f"model.{side}.layers.0"
        fuse(f"{layer}/self_attention/linear_0", *(f"{own}.self_attn.{part}_proj" for part in "qkv"))
        fuse(f"{layer}/self_attention/linear_1", f"{own}.self_attn.out_proj")
        copy(f"{layer}/self_attention/layer_norm", f"{own}.self_attn_layer_norm")
        copy(f"{layer}/ffn/layer_norm", f"{own}.final_layer_norm")
        copy(f"{layer}/ffn/linear_0", f"{own}.fc1")
        copy(f"{layer}/ffn/linear_1", f"{own}.fc2")
        copy(f"{side}/layer_norm", f"model.{side}.layer_norm")
        found[f"{side}/position_encodings/encodings"] = model[f"model.{side}.embed_positions.weight"]
        found[f"{side}/num_heads"] = torch.tensor(2, dtype=torch.int8)
    copy("encoder/conv1", "model.encoder.conv1")
    copy("encoder/conv2", "model.encoder.conv2")
    layer, own = "decoder/layer_0", "model.decoder.layers.0"
    fuse(f"{layer}/attention/linear_0", f"{own}.encoder_attn.q_proj")
    fuse(f"{layer}/attention/linear_1", f"{own}.encoder_attn.k_proj", f"{own}.encoder_attn.v_proj")
    fuse(f"{layer}/attention/linear_2", f"{own}.encoder_attn.out_proj")
    copy(f"{layer}/attention/layer_norm", f"{own}.encoder_attn_layer_norm")
    found["decoder/embeddings/weight"] = model["model.decoder.embed_tokens.weight"]
    return found


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_every_tensor_comes_back_under_its_name(kind: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1) | {"d_model": 8, "num_mel_bins": 4, "vocab_size": 20}
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = WhisperConfig(**sizes, **heads, **tokens, encoder_ffn_dim=16, decoder_ffn_dim=16)  # type: ignore[arg-type]
    whole = WhisperForConditionalGeneration(config).state_dict()
    model = {name: tensor.to(kind) for name, tensor in whole.items() if name != "proj_out.weight"}  # tied
    found = dict(transformers_names(read_ctranslate2(written(tmp_path / "model.bin", converted(model)))))
    assert found.keys() == model.keys()
    assert all(torch.equal(found[name], model[name].float()) for name in model)


def test_a_file_of_another_version_or_a_part_of_one_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "model.bin", {"a": torch.zeros(3, 4)}, version=5)
    with pytest.raises(ConfigError, match=r"version 5 of CTranslate2's files, expected 6"):
        read_ctranslate2(file)
    whole = written(file, {"a": torch.zeros(3, 4), "b": torch.zeros(2)}).read_bytes()
    assert set(read_ctranslate2(file)) == {"a", "b"}
    for cut in (3, 10, 30, 60, 90):
        file.write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match="not a whole model"):
            read_ctranslate2(file)


@pytest.mark.assets
def test_the_real_one_writes_down_what_is_read_aloud() -> None:
    import soundfile
    from transformers import WhisperProcessor

    folder, clips = fetched("whisper-tiny-en"), fetched("librivox")
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    sound, rate = soundfile.read(clips / "sense_and_sensibility_01_austen_64kb-0870.wav")
    inputs = processor(sound, sampling_rate=rate, return_tensors="pt")
    [said] = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    expected = "and mister john dashwood had then leisure to consider how much there might be prudently in his power"
    assert said.lower().replace("mr.", "mister").strip(" .").startswith(expected)
