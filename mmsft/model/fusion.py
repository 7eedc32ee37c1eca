"""The root module: splices media among the embeddings, and scores the targets."""

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from mmsft.config import Checkpointing
from mmsft.errors import AlignmentError, ConfigError, DataError
from mmsft.model import attention, seq2seq
from mmsft.model.attention import Trees
from mmsft.model.modes import evaluating
from mmsft.model.nll import nll
from mmsft.model.packs import body_of, why_not_packed
from mmsft.model.parts import Part, parts
from mmsft.model.precision import rounding, widen
from mmsft.model.tower import Tower
from mmsft.types import Batch, MediaBatch

log = logging.getLogger(__name__)


class MultimodalModel(nn.Module):
    """A decoder and its towers; without towers it is a plain language model.

    Everything that learns is reached through `forward`, as FSDP2 asks for.

    Attributes:
        decoder: any causal language model or encoder–decoder of transformers that takes `inputs_embeds`; apart from the
            model it is to be called inside `rounding(decoder)`.
        towers: by modality.
        head_apart: logits are the head's output on the hidden states and nothing else (`find_head` tells).
        packs: it takes packs of trees (`find_attention` tells); else threads are padded.
        long: tokens of a segment by itself from which on SDPA attends in a pack, see `attention.blocks`.

    Raises:
        ConfigError: the decoder puts virtual tokens before its inputs.
    """

    def __init__(self, decoder: PreTrainedModel, towers: Mapping[str, Tower] | None = None) -> None:
        super().__init__()
        _refuse_virtual_tokens(decoder)
        _own_configs(decoder)
        widen(decoder)
        self.decoder = decoder
        self.towers = nn.ModuleDict(dict(towers or {}))
        self.head_apart = True
        self.packs = False
        self.long = attention.LONG
        self._padded_attention: str = self.decoder.config._attn_implementation
        self._takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters

    @property
    def body(self) -> nn.Module:
        """The decoder without its head."""
        return body_of(self.decoder)

    @property
    def head(self) -> nn.Module:
        """The language-model head."""
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    @property
    def _vocabulary(self) -> int:
        size = self.head.out_features
        assert isinstance(size, int)
        return size

    def forward(self, batch: Batch) -> Tensor:
        """Returns the negative log-likelihood [N] of the batch's targets, fp32.

        Raises:
            AlignmentError: a medium's tokens differ in number from its slots.
            DataError: there is no tower for a medium.
        """
        embeds = self.embed(batch)
        with rounding(self.decoder):
            hidden_BTD = self.body(**self._inputs(batch, embeds)).last_hidden_state
            hidden_ND = hidden_BTD.flatten(0, 1)[batch.targets.at]
            logits = self.head if self.head_apart else self._familys_logits
            return nll(hidden_ND, batch.targets.token, logits, self._vocabulary)

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits [B, T, V] at every position; for comparisons, since training never holds them whole."""
        embeds = self.embed(batch)
        with rounding(self.decoder):
            if batch.prompts is not None:
                inputs = seq2seq.whole_inputs(self.decoder, batch, batch.prompts, embeds)
            else:
                inputs = self._inputs(batch, embeds)
            logits: Tensor = self.decoder(**inputs).logits
        return logits

    def _inputs(self, batch: Batch, embeds: Tensor) -> dict[str, Any]:
        self.attend(packed=batch.pack is not None)
        if batch.prompts is not None:
            return seq2seq.reply_inputs(self.decoder, batch, batch.prompts, embeds)
        inputs: dict[str, Any] = {"inputs_embeds": embeds, "use_cache": False}
        if batch.pack is None:
            inputs["attention_mask"] = batch.mask.long()
        else:
            inputs["trees"] = Trees(batch.pack, batch.positions[0], long=self.long)
        return inputs | ({"position_ids": batch.positions} if self._takes_positions else {})

    def attend(self, *, packed: bool) -> None:
        """Has the decoder attend in packs from here on, or in padded threads; it recomputes activations likewise."""
        wanted = attention.NAME if packed else self._padded_attention
        if self.decoder.config._attn_implementation != wanted:
            self.decoder.set_attn_implementation(wanted)

    def embed(self, batch: Batch) -> Tensor:
        """Returns the embeddings [B, T, D], those of media in their slots; of prompts [E, S, D] if there are any."""
        for name, media in batch.media.items():
            if name not in self.towers:
                have = ", ".join(self.towers) or "none: the model is text-only"
                raise DataError(f"{_row(batch, media)}: there is no {name} tower (towers: {have})")
        embeddings = self.decoder.get_input_embeddings()
        if batch.prompts is None:
            tokens: Tensor = embeddings(batch.input_ids)
        else:
            tokens = embeddings(batch.prompts.input_ids) * seq2seq.embedding_scale(self.decoder)
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

    def checkpoint_activations(self, which: Checkpointing) -> None:
        """Computes activations of decoder layers anew in the backward pass instead of keeping them (non-reentrant).

        Args:
            which: of every layer (``full``), of every second one (``selective``), or of none from here on.

        Raises:
            ConfigError: the decoder's class can't do it.
        """
        if which == "none":
            self.decoder.activation_checkpointing_disable()
            return
        if not self.decoder.supports_gradient_checkpointing:
            name = type(self.decoder).__name__
            raise ConfigError(f"activation_checkpointing: {name} can't do it; leave it out, or lower micro_batch")
        every = 2 if which == "selective" else 1
        self.decoder.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=every)

    def find_attention(self) -> None:
        """Sets `packs` by comparing a pack with its threads; an empty model has nothing to compare, and is trusted.

        To be asked once the model is on its device, under the autocast that it will compute under: attention differs.
        An encoder–decoder takes none: its encoder sees both ways, so that its prompts share nothing but all they are.
        """
        if self.decoder.config.is_encoder_decoder:
            return
        reason = None if self.decoder.device.type == "meta" else why_not_packed(self.decoder)
        self.packs = reason is None
        if reason is not None:
            log.warning(
                "%s: %s; its threads are padded, and what they share goes through it once for each",
                type(self.decoder).__name__,
                reason,
            )

    @torch.no_grad()
    def find_head(self) -> None:
        """Sets `head_apart` by comparing the head alone with the decoder's own logits on a few tokens.

        Some families cap or scale their logits outside the head. An empty model has no values to compare: there the
        logits must be the very tensor that the head returns.

        Raises:
            ConfigError: the family's logits follow from more than its last hidden states, or it takes no embeddings.
        """
        if self.decoder.device.type == "meta":
            self.head_apart = _returns_its_heads_output(self.decoder)
            return
        name = type(self.decoder).__name__
        with evaluating(self), rounding(self.decoder):
            try:
                whole, hidden = self._few_tokens()
                self.head_apart = _alike(whole, self.head(hidden))
            except (TypeError, RuntimeError) as error:  # what a family's code makes of inputs that it doesn't know
                raise ConfigError(f"{name} can't be run on embeddings, apart from its head ({error})") from error
            if not self.head_apart and not _alike(whole, self._familys_logits(hidden)):
                raise ConfigError(
                    f"{name}: its logits follow from more than its last hidden states; name another model"
                )

    def _few_tokens(self) -> tuple[Tensor, Tensor]:
        """Returns the decoder's own logits [4, V] for a few tokens, and the last hidden states [4, D] of its body."""
        ids = torch.arange(4, device=next(self.parameters()).device)[None]
        if self.decoder.config.is_encoder_decoder:
            ids = ids + 4  # behind the token for padding, which some families leave out of their positions
            whole = self.decoder(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits[0]
            batch = seq2seq.exchange(ids)
            return whole, self.body(**self._inputs(batch, self.embed(batch))).last_hidden_state[0]
        # Real embeddings, made large, so that a cap on the logits shows.
        inputs = {"inputs_embeds": self.decoder.get_input_embeddings()(ids) * 4, "use_cache": False}
        return self.decoder(**inputs).logits[0], self.body(**inputs).last_hidden_state[0]

    def _familys_logits(self, hidden_ND: Tensor) -> Tensor:
        return _last_step(self.decoder, hidden_ND[None])[0]


def _refuse_virtual_tokens(decoder: nn.Module) -> None:
    tuned = getattr(decoder, "active_peft_config", None)
    if tuned is not None and tuned.is_prompt_learning:
        raise ConfigError(
            f"{type(decoder).__name__}: {type(tuned).__name__} puts {tuned.num_virtual_tokens} virtual tokens before "
            "its inputs, which no position, segment or target counts; take LoRA (decoder.lora)"
        )


def _own_configs(decoder: nn.Module) -> None:
    """Gives a decoder configs that no other model holds: the attention to take is written in them."""
    copies: dict[int, Any] = {}
    for module in decoder.modules():
        if isinstance(getattr(module, "config", None), PreTrainedConfig):
            module.config = copy.deepcopy(module.config, copies)


class _AnyOutput(BaseModelOutput):
    """Hidden states, and None for whatever else a family's body returns."""

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _body_replaced(decoder: Any, hidden: Tensor) -> Iterator[None]:
    """Has the decoder's body give hidden states that are there already."""
    body: Any = body_of(decoder)
    body.forward = lambda *args, **kwargs: _AnyOutput(last_hidden_state=hidden)
    try:
        yield
    finally:
        del body.forward  # the class's own shows again


def _last_step(decoder: Any, hidden_BTD: Tensor) -> Tensor:
    """Runs the decoder's own last step, with the caps and scales of its family."""
    inputs: dict[str, Any] = {"inputs_embeds": hidden_BTD}
    if decoder.config.is_encoder_decoder:
        states = _AnyOutput(last_hidden_state=hidden_BTD)
        inputs = {"encoder_outputs": states, "decoder_inputs_embeds": hidden_BTD}
    with _body_replaced(decoder, hidden_BTD):
        logits: Tensor = decoder(**inputs, use_cache=False).logits
    return logits


def _alike(whole: Tensor, apart: Tensor) -> bool:
    if whole.shape != apart.shape:
        return False
    difference = (whole.float() - apart.float()).abs().max()
    return float(difference) < 1e-4 * max(1e-6, float(whole.float().abs().max()))


def _returns_its_heads_output(decoder: Any) -> bool:
    """Runs a decoder's last step on the meta device; its body, whose masks need values, is left out."""
    head = decoder.get_output_embeddings()
    hidden = torch.empty(1, 1, head.in_features, device="meta", dtype=head.weight.dtype)
    returned: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: returned.append(output))
    try:
        logits = _last_step(decoder, hidden)
    except RuntimeError:
        return True  # it calls another module than its body, which needs values; with these it will be known
    finally:
        hook.remove()
    return any(logits is output for output in returned)


def _features(tower: Tower, name: str, media: MediaBatch, batch: Batch) -> Tensor:
    """Returns what fills the slots [S, D], each distinct medium encoded once."""
    groups = [tower(group) for group in media.groups]
    for use in media.uses:
        given = groups[use.group].shape[1]
        if use.count != given:
            key = media.groups[use.group].key(use.index)
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
    return torch.cat([group.flatten(0, 1) for group in groups]).index_select(0, media.tokens)


def _row(batch: Batch, media: MediaBatch) -> str:
    return batch.ids[media.uses[0].row]
