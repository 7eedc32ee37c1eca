"""Writes a model as a folder that plain transformers loads, and compares the two."""

import copy
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mmsft.adapters.spec import Adapter
from mmsft.errors import CheckpointError, ConfigError
from mmsft.modalities.spec import Modality
from mmsft.model.decoder import auto_class
from mmsft.model.fusion import MultimodalModel
from mmsft.model.llava_layout import llava_problem, to_llava
from mmsft.model.merged import fill, merged_state
from mmsft.model.modes import evaluating
from mmsft.model.new_tokens import heads_tied
from mmsft.model.precision import held
from mmsft.model.tower import Tower
from mmsft.model.weights import share
from mmsft.types import Batch

# Root mean square of the difference, as a part of that of the logits about their mean: merged weights and towers are
# rounded once more, and layers amplify that. A wrong layout is off by about 1.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float64: 1e-9}


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, and how far it is from the model.

    Attributes:
        folder: for `from_pretrained`.
        layout: the class of transformers.
        max_logit_difference: over all positions of the compared rows.
        max_logit: the largest logit there, for comparison.
        rows: how many rows were compared.
    """

    folder: Path
    layout: str
    max_logit_difference: float
    max_logit: float
    rows: int


def export_problem(towers: Mapping[str, tuple[Modality, Adapter]]) -> str | None:
    """Returns why no layout of transformers holds a model with these towers, or None; known before training."""
    return llava_problem(towers) if towers else None


def rehearsal_problem(model: MultimodalModel, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Tries an export without writing anything; an empty model does, so that it is known before training.

    Args:
        model: the root module.
        tokenizer: with the model's new tokens.

    Returns:
        Why no layout of transformers holds the model, or None.
    """
    try:
        if problem := _problem(model):
            return problem
        if model.towers:
            to_llava(model, tokenizer, template="")
        else:
            plain_decoder(model.decoder)
    except ConfigError as error:
        return str(error)
    return None


def export_hf(
    model: MultimodalModel,
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    rows: Sequence[Batch],
    out: Path,
    stop_ids: Collection[int] = (),
) -> Export:
    """Writes the model for transformers; the folder appears whole, or not at all.

    Args:
        model: the root module; it stays as it is.
        tokenizer: with the model's new tokens.
        template: the chat template's text.
        rows: compared, at least one batch: its logits before and after.
        out: a folder that doesn't exist yet.
        stop_ids: tokens that end a reply, if others do than the decoder's own settings say.

    Raises:
        ConfigError: no layout holds the model, or `out` is taken.
        CheckpointError: the logits differ, there are no rows, or the folder can't be written.
    """
    if problem := _problem(model):
        raise ConfigError(f"no class of transformers holds this model: {problem}")
    if out.exists():
        raise ConfigError(f"{out} exists; name a folder that doesn't, or remove it")
    if not rows:
        raise CheckpointError(f"{out}: not written, since there is no row to compare on")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"{out}: can't be written: {error}") from error
    try:
        layout = _write(model, tokenizer, template, aside, stop_ids)
        result = _compare(model, aside, layout, rows, out)
        aside.chmod(0o755)
        os.rename(aside, out)
    except OSError as error:
        raise CheckpointError(f"{out}: can't be written: {error}; make room, or name another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return result


def _problem(model: MultimodalModel) -> str | None:
    if model.towers and model.decoder.config.is_encoder_decoder:
        return f"{type(model.decoder).__name__} is an encoder-decoder, and those take no towers in it; leave them out"
    return export_problem({name: _spec(tower) for name, tower in model.towers.items()})


def _spec(tower: Any) -> tuple[Modality, Adapter]:
    assert isinstance(tower, Tower)
    return tower.modality, tower.adapter_spec


def _write(
    model: MultimodalModel,
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    folder: Path,
    stop_ids: Collection[int],
) -> str:
    """Writes model, tokenizer and processor; returns the class's name."""
    if model.towers:
        llava = to_llava(model, tokenizer, template)
        _stop_at(llava.model, stop_ids)
        llava.model.save_pretrained(folder)
        llava.processor.save_pretrained(folder)
        share(folder, "config.json")
        return type(llava.model).__name__
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    clean = plain_decoder(model.decoder)
    _stop_at(clean, stop_ids)
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    share(folder, "config.json")
    return type(clean).__name__


def _stop_at(model: PreTrainedModel, stop_ids: Collection[int]) -> None:
    """Lets `generate` of transformers stop where our template ends a reply."""
    if stop_ids:
        settings: Any = copy.deepcopy(model.generation_config)
        settings.eos_token_id = sorted(stop_ids)
        model.generation_config = settings


def plain_decoder(decoder: PreTrainedModel) -> PreTrainedModel:
    """Returns the decoder as an object of its own class, with LoRA and new tokens merged."""
    with torch.device("meta"):
        clean = type(decoder)(copy.deepcopy(decoder.config))
    fill(clean, merged_state(decoder), heads_tied(decoder))
    clean.generation_config = decoder.generation_config
    return clean


@torch.no_grad()
def _compare(model: MultimodalModel, folder: Path, layout: str, rows: Sequence[Batch], out: Path) -> Export:
    auto: Any = AutoModelForImageTextToText if model.towers else auto_class(model.decoder.config)
    weight = next(model.parameters())
    loaded: Any = auto.from_pretrained(folder, dtype=held(model.decoder))
    loaded.to(weight.device).eval()
    difference, largest, off, spread, count = 0.0, 0.0, 0.0, 0.0, 0
    for batch in (batch.map(lambda tensor: tensor.to(weight.device)) for batch in rows):
        with evaluating(model):
            ours = model.logits(batch)[batch.mask].float()
        theirs = loaded(**_hf_inputs(loaded, batch)).logits[batch.mask].float()[:, : ours.shape[1]]
        difference = max(difference, float((ours - theirs).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        off += float((ours - theirs).double().square().sum())
        spread += float((ours - ours.mean(-1, keepdim=True)).double().square().sum())
        count += len(batch.ids)
    relative, limit = (off / spread) ** 0.5 if spread else 0.0, _TOLERANCE[held(model.decoder)]
    if not relative <= limit:
        raise CheckpointError(
            f"{out}: not written, since {layout} computes something else: on {count} rows its logits differ by "
            f"{relative:.2g} of their spread, more than {limit:g}, and by up to {difference:.3g} (largest logit "
            f"{largest:.3g}); please report this with the config"
        )
    return Export(out, layout, difference, largest, count)


def _hf_inputs(loaded: Any, batch: Batch) -> dict[str, Tensor]:
    if (prompts := batch.prompts) is not None:
        return {
            "input_ids": prompts.input_ids[prompts.of],
            "attention_mask": prompts.mask.long()[prompts.of],
            "decoder_input_ids": batch.input_ids,
            "decoder_attention_mask": batch.mask.long(),
        }
    ids = batch.input_ids.clone()
    inputs = {"input_ids": ids, "attention_mask": batch.mask.long()}
    for media in batch.media.values():
        ids.view(-1)[media.slots] = loaded.config.image_token_id
        groups = [group.tensors["pixels"] for group in media.groups]
        inputs["pixel_values"] = torch.stack([groups[use.group][use.index] for use in media.uses]).to(loaded.dtype)
    return inputs
