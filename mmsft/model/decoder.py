"""Loads the language model and its tokenizer: from the hub, a folder, a GGUF file, or a fetched asset."""

import copy
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from mmsft.assets import cache_dir
from mmsft.config import DecoderConfig
from mmsft.errors import ConfigError
from mmsft.modalities.hub import loading, located

_WHAT = "the decoder"


def load_tokenizer(config: DecoderConfig) -> PreTrainedTokenizerFast:
    """Loads the tokenizer and adds the config's new tokens to it.

    Raises:
        ConfigError: it can't be loaded, isn't a fast one, or knows one of the new tokens already.
    """
    with loading("the tokenizer of", config.name):
        tokenizer: Any = AutoTokenizer.from_pretrained(_source(config), **_options(config))
    if not tokenizer.is_fast:
        raise ConfigError(f"{config.name}: its tokenizer has no fast form (tokenizer.json), which mmsft needs")
    known = tokenizer.get_vocab()
    for token in config.new_tokens:
        if token in known:
            raise ConfigError(
                f"decoder.new_tokens: {token!r} is in the tokenizer of {config.name} already (id {known[token]}); "
                "leave it out"
            )
    if len(set(config.new_tokens)) != len(config.new_tokens):
        raise ConfigError(f"decoder.new_tokens: one is stated twice: {', '.join(config.new_tokens)}")
    tokenizer.add_tokens(list(config.new_tokens), special_tokens=True)
    return tokenizer  # type: ignore[no-any-return]


def load_decoder(config: DecoderConfig) -> PreTrainedModel:
    """Loads the language model's weights.

    Raises:
        ConfigError: they can't be loaded, or it isn't a causal language model.
    """
    source, options = _source(config), _options(config)
    with loading(_WHAT, config.name):
        settings = AutoConfig.from_pretrained(source, **options)
        # A configuration shared by two models shares its attention setting: each gets one of its own.
        decoder: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source,
            config=copy.deepcopy(settings),
            dtype=getattr(torch, config.dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            **options,
        )
    return decoder


def _options(config: DecoderConfig) -> dict[str, Any]:
    return {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}


def _source(config: DecoderConfig) -> str:
    name = located(config.name)
    path = Path(name)
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise ConfigError(
                f"{config.name}: {path} holds neither a config.json nor exactly one .gguf file ({len(files)})"
            )
        path = files[0]
    return str(_converted(path)) if path.suffix == ".gguf" else name


def _converted(gguf: Path) -> Path:
    """Returns a GGUF file as a transformers folder, converted once: unpacking its quantised weights takes long."""
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_dir() / "gguf" / digest[:16]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, aside)
        os.replace(aside, folder)
    except OSError:
        if not folder.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    where = {"gguf_file": gguf.name}
    with loading("the GGUF file", str(gguf)):
        unpacked = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    # The model believes itself quantised, and then can't be saved: its weights go to one that doesn't.
    config = type(unpacked.config)(
        **{name: value for name, value in unpacked.config.to_dict().items() if name != "quantization_config"}
    )
    with torch.device("meta"):
        clean = type(unpacked)(config)
    clean.load_state_dict(unpacked.state_dict(), assign=True)
    clean.tie_weights()
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
