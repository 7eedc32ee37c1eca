from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPTJConfig,
    GPTNeoConfig,
    MambaConfig,
    MptConfig,
)

from mmsft.config import DecoderConfig
from mmsft.errors import ConfigError
from mmsft.model.decoder import load_decoder, load_tokenizer
from mmsft.model.fusion import MultimodalModel
from tests.model.tiny import Row, batch_of, clip_folder, decoder_folder, llama


def test_a_decoder_loads_from_a_folder_in_the_dtype_that_the_config_says(tmp_path: Path) -> None:
    saved = llama()
    decoder_folder(tmp_path, saved)
    for dtype in ("float32", "bfloat16"):
        loaded = load_decoder(DecoderConfig(name=str(tmp_path), dtype=dtype))
        assert torch.equal(loaded.state_dict()["lm_head.weight"], saved.lm_head.weight.to(getattr(torch, dtype)))
        assert loaded.config._attn_implementation == "sdpa"


SIZES: Final[dict[str, Any]] = {"vocab_size": 50, "initializer_range": 0.3}
FAMILIES = [
    Gemma2Config(**SIZES, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=4,
                 num_key_value_heads=2, sliding_window=3, attn_logit_softcapping=1.0),
    BloomConfig(**SIZES, hidden_size=16, n_layer=2, n_head=4),
    GPTJConfig(**SIZES, n_embd=16, n_layer=2, n_head=4, rotary_dim=4, bos_token_id=1, eos_token_id=2),
    GPTNeoConfig(**SIZES, hidden_size=16, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
                 window_size=3, bos_token_id=1, eos_token_id=2),
    MptConfig(**SIZES, d_model=16, n_layers=2, n_heads=4),
    MambaConfig(**SIZES, hidden_size=16, num_hidden_layers=2, state_size=4),
]  # fmt: skip


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: str(config.model_type))
def test_a_family_without_sdpa_loads_and_padding_decides_nothing_in_it(tmp_path: Path, config: Any) -> None:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    decoder_folder(tmp_path, made)
    model = MultimodalModel(load_decoder(DecoderConfig(name=str(tmp_path)))).eval()
    rows = [Row([1, 5, 6, 7, 8, 9, 10, 11]), Row([1, 12, 13])]
    apart = torch.cat([model(batch_of([row])) for row in rows])
    padded = batch_of(rows)
    assert not padded.mask.all()
    # fp32: the same products, summed in blocks of another size
    torch.testing.assert_close(model(padded), apart, atol=1e-5, rtol=1e-5)


def test_two_decoders_of_one_folder_share_no_setting(tmp_path: Path) -> None:
    config = DecoderConfig(name=str(decoder_folder(tmp_path)))
    one, two = load_decoder(config), load_decoder(config)
    one.set_attn_implementation("eager")
    assert two.config._attn_implementation == "sdpa"


def test_new_tokens_are_special_and_get_the_next_ids(tmp_path: Path) -> None:
    tokenizer: Any = load_tokenizer(DecoderConfig(name=str(decoder_folder(tmp_path)), new_tokens=("<a>", "<b>")))
    assert tokenizer.convert_tokens_to_ids(["<a>", "<b>"]) == [50, 51]
    assert tokenizer.encode("w1<b>", add_special_tokens=False)[-1] == 51
    assert tokenizer.decode([51], skip_special_tokens=True) == ""


@pytest.mark.parametrize("load", [load_decoder, load_tokenizer])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"\./nowhere: no such file or folder"),
        ("models/x/y", "no such file or folder"),
        ("nobody/nothing", "'nobody/nothing' can't be loaded: .*hub id that this machine can reach"),
        ("asset:nothing", "nothing"),
    ],
)
def test_what_is_not_there_is_an_error_with_the_ways_out(
    load: Any, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=message):
        load(DecoderConfig(name=name))


def test_an_empty_folder_and_a_model_of_another_kind_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"neither a config.json nor exactly one \.gguf file \(0\)"):
        load_decoder(DecoderConfig(name=str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match="can't be loaded"):
        load_decoder(DecoderConfig(name=str(clip_folder(tmp_path / "clip"))))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    decoder_folder(tmp_path)
    torch.save(llama().state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="can't be loaded"):
        load_decoder(DecoderConfig(name=str(tmp_path)))


def write_gguf(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Writes a one-layer Llama as GGUF, by the format's own names."""
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (8, 16),
        "blk.0.attn_q.weight": (16, 16),
        "blk.0.attn_k.weight": (16, 16),
        "blk.0.attn_v.weight": (16, 16),
        "blk.0.attn_output.weight": (16, 16),
        "blk.0.ffn_gate.weight": (32, 16),
        "blk.0.ffn_up.weight": (32, 16),
        "blk.0.ffn_down.weight": (16, 32),
        "blk.0.attn_norm.weight": (16,),
        "blk.0.ffn_norm.weight": (16,),
        "output_norm.weight": (16,),
        "output.weight": (8, 16),
    }
    tensors = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "d"])
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_is_converted_once_with_its_weights_and_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSFT_CACHE", str(tmp_path / "cache"))
    tensors = write_gguf(tmp_path / "tiny.gguf")
    config = DecoderConfig(name=str(tmp_path / "tiny.gguf"))
    state = load_decoder(config).state_dict()
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
        "output.weight": "lm_head.weight",
    }.items():
        assert np.array_equal(tensors[theirs], state[ours].numpy()), ours
    (folder,) = (tmp_path / "cache" / "gguf").iterdir()
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert load_tokenizer(config).convert_tokens_to_ids("ab") == 6
    load_decoder(DecoderConfig(name=str(tmp_path)))  # a folder that holds the one file
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
