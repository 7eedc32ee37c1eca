"""The root module: splices media among the embeddings, and scores the targets."""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmsft.errors import AlignmentError, ConfigError, DataError
from mmsft.model.modes import evaluating
from mmsft.model.nll import nll
from mmsft.model.parts import Part, parts
from mmsft.model.tower import Tower
from mmsft.types import Batch, MediaBatch

log = logging.getLogger(__name__)


class MultimodalModel(nn.Module):
    """A decoder and its towers; without towers it is a plain language model.

    Everything that learns is reached through `forward`, as FSDP2 asks for.

    Attributes:
        decoder: any causal language model of transformers that takes `inputs_embeds`.
        towers: by modality.
        head_apart: logits are the head's output on the hidden states and nothing else (`find_head` tells), so that
            only targets need meet the head.
    """

    def __init__(self, decoder: PreTrainedModel, towers: Mapping[str, Tower] | None = None) -> None:
        super().__init__()
        self.decoder = decoder
        self.towers = nn.ModuleDict(dict(towers or {}))
        self.head_apart = True
        accepted = inspect.signature(self.body.forward).parameters
        self._takes_positions = "position_ids" in accepted

    @property
    def body(self) -> nn.Module:
        """The decoder without its head."""
        body: nn.Module = self.decoder.base_model
        return body

    @property
    def head(self) -> nn.Module:
        """The language-model head."""
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    def forward(self, batch: Batch) -> Tensor:
        """Returns the negative log-likelihood [N] of the batch's targets, fp32.

        Raises:
            AlignmentError: a medium's tokens differ in number from its slots.
            DataError: there is no tower for a medium.
        """
        at, token = batch.targets.at, batch.targets.token
        if not self.head_apart:
            return nll(self.logits(batch).flatten(0, 1)[at], token)
        hidden_BTD = self.body(**self._inputs(batch)).last_hidden_state
        return nll(hidden_BTD.flatten(0, 1)[at], token, self.head)

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits [B, T, V] at every position; for comparisons, since training never holds them whole."""
        logits: Tensor = self.decoder(**self._inputs(batch)).logits
        return logits

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs = {"inputs_embeds": self.embed(batch), "attention_mask": batch.mask.long(), "use_cache": False}
        return inputs | ({"position_ids": batch.positions} if self._takes_positions else {})

    def embed(self, batch: Batch) -> Tensor:
        """Returns the embeddings [B, T, D], those of media in their slots."""
        for name, media in batch.media.items():
            if name not in self.towers:
                have = ", ".join(self.towers) or "none: the model is text-only"
                raise DataError(f"{_row(batch, media)}: there is no {name} tower (towers: {have})")
        tokens: Tensor = self.decoder.get_input_embeddings()(batch.input_ids)
        flat = tokens.flatten(0, 1)
        for name, tower in self.towers.items():
            assert isinstance(tower, Tower)
            if name in batch.media:
                media = batch.media[name]
                spliced = _features(tower, name, media, batch)
                flat = flat.index_copy(0, media.slots, spliced.to(flat.dtype))
            elif torch.is_grad_enabled() and tower.learns:
                flat = flat + tower.untouched().to(flat.dtype)
        return flat.view_as(tokens)

    def parts(self) -> list[Part]:
        """Returns the parts of the model with their sizes, and what of them learns."""
        return parts(self)

    def checkpoint_activations(self, enabled: bool) -> None:
        """Recomputes the decoder's activations in the backward pass instead of keeping them (non-reentrant)."""
        if enabled:
            if not self.decoder.supports_gradient_checkpointing:
                name = type(self.decoder).__name__
                raise ConfigError(f"activation_checkpointing: {name} can't do it; leave it out, or lower micro_batch")
            self.decoder.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.decoder.activation_checkpointing_disable()

    @torch.no_grad()
    def find_head(self) -> None:
        """Sets `head_apart` by comparing the head alone with the decoder's own logits on a few tokens.

        Some families cap or scale their logits outside the head; they pay with logits at every position. An empty model
        has no values to compare: there the logits must be the very tensor that the head returns.
        """
        if self.decoder.device.type == "meta":
            self.head_apart = _returns_its_heads_output(self.decoder)
            return
        embeddings = self.decoder.get_input_embeddings()
        ids = torch.arange(4, device=next(self.parameters()).device)[None]
        # Real embeddings, made large, so that a cap on the logits shows.
        inputs = {"inputs_embeds": embeddings(ids) * 4, "use_cache": False}
        with evaluating(self):
            whole = self.decoder(**inputs).logits.float()
            apart = self.head(self.body(**inputs).last_hidden_state).float()
        difference = float((whole - apart).abs().max()) / max(1e-6, float(whole.abs().max()))
        self.head_apart = whole.shape == apart.shape and difference < 1e-4
        if not self.head_apart:
            log.warning(
                "%s scales or caps its logits outside the head (relative difference %.2g): they are computed at every "
                "position, which costs memory for tokens of a micro-batch times vocabulary",
                type(self.decoder).__name__,
                difference,
            )


class _AnyOutput(BaseModelOutputWithPast):
    """Hidden states, and None for whatever else a family's body returns."""

    def __getattr__(self, name: str) -> None:
        return None


def _returns_its_heads_output(decoder: Any) -> bool:
    """Runs a decoder's last step on the meta device; its body, whose masks need values, is left out."""
    body, head = decoder.base_model, decoder.get_output_embeddings()
    hidden = torch.empty(1, 1, head.in_features, device="meta", dtype=head.weight.dtype)
    returned: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: returned.append(output))
    body.forward = lambda *args, **kwargs: _AnyOutput(last_hidden_state=hidden)
    try:
        logits = decoder(inputs_embeds=hidden, use_cache=False).logits
    except RuntimeError:
        return True  # it calls another module than its body, which needs values; with these it will be known
    finally:
        del body.forward  # the class's own shows again
        hook.remove()
    return any(logits is output for output in returned)


def _features(tower: Tower, name: str, media: MediaBatch, batch: Batch) -> Tensor:
    """Returns what fills the slots [S, D], each distinct medium encoded once."""
    groups = [tower(group.tensors, group.grid) for group in media.groups]
    for use in media.uses:
        given = groups[use.group].shape[1]
        if use.count != given:
            key = media.groups[use.group].keys[use.index]
            raise AlignmentError(
                f"{batch.ids[use.row]}: {key} has {use.count} slots among the tokens, and the {name} tower gives "
                f"{given} tokens for it; the adapter's layout and its module disagree"
            )
    places = sum(use.count for use in media.uses)
    if places != len(media.slots):
        raise AlignmentError(
            f"{_row(batch, media)} and others: {len(media.slots)} {name} slots in the batch, and tokens for {places}; "
            "a row was cut inside a medium, or collated wrongly"
        )
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.shape[0] * group.shape[1])
    index = [torch.arange(use.count) + starts[use.group] + use.index * use.count for use in media.uses]
    flat = torch.cat([group.flatten(0, 1) for group in groups])
    return flat.index_select(0, torch.cat(index).to(flat.device))


def _row(batch: Batch, media: MediaBatch) -> str:
    return batch.ids[media.uses[0].row]
