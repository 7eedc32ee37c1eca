"""Loads the language model and its tokenizer: from the hub, a folder, a GGUF file, or a fetched asset."""

import copy
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mmsft.assets import cache_dir
from mmsft.config import DecoderConfig
from mmsft.errors import ConfigError
from mmsft.modalities.hub import loading, located
from mmsft.model.headers import read_headers

_WHAT = "the decoder"
log = logging.getLogger(__name__)


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


def load_decoder(config: DecoderConfig, *, empty: bool = False) -> PreTrainedModel:
    """Loads the language model's weights.

    Args:
        config: names the model.
        empty: leave the parameters on the meta device, where they take no memory; that the files hold them is seen
            from the files' headers.

    Raises:
        ConfigError: they can't be loaded, don't fit, or it is neither a causal language model nor an encoder–decoder.
    """
    source, options = _source(config), _options(config)
    loaded: Any
    with loading(_WHAT, config.name):
        settings = AutoConfig.from_pretrained(source, **options)
        how: dict[str, Any] = {
            "config": settings,
            "dtype": getattr(torch, config.dtype),
            # What is missing or of another shape isn't made up, but refused below.
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }
        if empty:
            # The library's own loader compares, since it knows which names it maps to which.
            tensors = read_headers(source, options["revision"])
            kind = _class(settings, options)
            loaded = kind.from_pretrained(None, state_dict=tensors, device_map="meta", **how)
        else:
            loaded = auto_class(settings).from_pretrained(source, use_safetensors=True, **how, **options)
    decoder: PreTrainedModel
    decoder, found = loaded
    if lacking := sorted([*found["missing_keys"], *map(_mismatch, found["mismatched_keys"])]):
        raise ConfigError(
            f"{_WHAT} {config.name!r}: its files lack {len(lacking)} of the parameters of a {type(decoder).__name__}, "
            f"{lacking[0]} the first; fetch it again, or name another"
        )
    return decoder


def decoder_start(config: DecoderConfig) -> int | None:
    """Returns the id with which an encoder–decoder's replies begin; None for a causal language model.

    Raises:
        ConfigError: the model can't be found, or doesn't state the id.
    """
    with loading(_WHAT, config.name):
        settings: Any = AutoConfig.from_pretrained(_source(config), **_options(config))
    if not settings.is_encoder_decoder:
        return None
    start = getattr(settings, "decoder_start_token_id", None)
    if start is None:
        raise ConfigError(
            f"{config.name}: its config.json states no decoder_start_token_id, with which an encoder-decoder begins "
            "each reply; add it there"
        )
    return int(start)


def auto_class(settings: PreTrainedConfig) -> Any:
    """Returns the class of transformers that loads a language model of this configuration."""
    return AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM


def _mismatch(found: tuple[str, torch.Size, torch.Size]) -> str:
    name, stored, expected = found
    return f"{name} ({list(expected)}, there it is {list(stored)})"


def _class(settings: PreTrainedConfig, options: Mapping[str, Any]) -> type[PreTrainedModel]:
    """Returns the class that a configuration belongs to."""
    with torch.device("meta"):
        auto: Any = auto_class(settings)
        kind = auto.from_config(copy.deepcopy(settings), trust_remote_code=options["trust_remote_code"])
    return type(kind)


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
    log.warning("%s is unpacked, once: to %s", gguf, folder)
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
