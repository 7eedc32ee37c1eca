import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from mmsft.config import DecoderConfig
from mmsft.model import headers
from mmsft.model.decoder import load_decoder
from mmsft.model.headers import read_headers
from tests.model.tiny import decoder_folder, llama


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_headers_fill_an_empty_decoder_from_one_file_or_shards_tied_or_not(
    tmp_path: Path, tied: bool, shard: str
) -> None:
    saved = llama(tie_word_embeddings=tied)
    decoder_folder(tmp_path, saved)
    (tmp_path / "model.safetensors").unlink()
    saved.save_pretrained(tmp_path, max_shard_size=shard)
    empty: Any = load_decoder(DecoderConfig(name=str(tmp_path)), empty=True)
    assert {name: p.shape for name, p in empty.named_parameters()} == {
        name: p.shape for name, p in saved.named_parameters()
    }
    assert (empty.lm_head.weight is empty.model.embed_tokens.weight) == tied
    assert empty.lm_head.weight.is_meta


def cached(root: Path) -> Path:
    """Puts a sharded model into a cache as the hub's library lays it out; returns its folder."""
    repo = root / "models--nobody--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    folder = repo / "snapshots" / "abc"
    llama().save_pretrained(folder, max_shard_size="20KB")
    return folder


def test_a_hub_id_is_read_from_its_cache_and_from_the_hub_only_where_files_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = cached(tmp_path)
    asked: list[str] = []

    def from_hub(source: str, *, revision: str) -> None:
        asked.append(f"{source}@{revision}")
        raise ConnectionError("offline")

    monkeypatch.setattr(headers, "get_safetensors_metadata", from_hub)
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert read_headers("nobody/tiny", "main").keys() == names.keys()
    assert asked == []
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(ConnectionError):
        read_headers("nobody/tiny", "main")
    assert asked == ["nobody/tiny@main"]
