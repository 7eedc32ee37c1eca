"""A model as transformers' LLaVA: configuration, weights and processor."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmsft.adapters import Mlp, Mlp2xGelu
from mmsft.adapters.mlp import Projector
from mmsft.adapters.spec import Adapter
from mmsft.errors import ConfigError
from mmsft.modalities import Clip
from mmsft.modalities.clip_tower import ClipEncoder, clip_model, has_cls
from mmsft.modalities.spec import Modality
from mmsft.model.fusion import MultimodalModel
from mmsft.model.merged import fill, merged_state
from mmsft.model.tower import Tower

IMAGE_TOKEN = "<image>"

# LLaVA's processor gives a turn's content as a list of parts; the templates that mmsft trains with take text.
_FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string or not message.content -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set said = namespace(text='') -%}
{%- for part in message.content -%}
{%- set said.text = said.text + ('<image>' if part.type == 'image' else part.text) -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=said.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def llava_problem(towers: Mapping[str, tuple[Modality, Adapter]]) -> str | None:
    """Returns why LLaVA can't hold these towers, or None."""
    if len(towers) > 1:
        return f"LLaVA holds one tower, this model has {len(towers)}: {', '.join(towers)}"
    ((name, (modality, adapter)),) = towers.items()
    if not isinstance(modality, Clip):
        return f"LLaVA holds CLIP and SigLIP towers (kind clip), and towers.{name} is a {type(modality).__name__}"
    if adapter not in (Mlp2xGelu(), Mlp(depth=2)):
        return f"LLaVA holds an mlp2x_gelu adapter without settings, and towers.{name}.adapter is {adapter}"
    return None


@dataclass(frozen=True, slots=True)
class Llava:
    """What is to be saved."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor


@torch.no_grad()
def to_llava(model: MultimodalModel, tokenizer: PreTrainedTokenizerFast, template: str) -> Llava:
    """Builds the LLaVA model that equals a model for which `llava_problem` is None, LoRA merged.

    Raises:
        ConfigError: the decoder's head is more than one linear layer without bias, or its names don't fit.
    """
    (tower,) = model.towers.values()
    assert isinstance(tower, Tower)
    if not model.head_apart or getattr(model.head, "bias", None) is not None:
        raise ConfigError(
            f"LLaVA's head is one linear layer without bias; {type(model.decoder).__name__} scales, caps or shifts its "
            "logits beside it, so that no layout of transformers holds it together with a tower"
        )
    spec = tower.modality
    assert isinstance(spec, Clip)
    tokenizer = copy.deepcopy(tokenizer)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    image_id: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    vision = _whole_vision(spec, tower)
    text, vocabulary = _text_state(model, image_id + 1)
    text_config = copy.deepcopy(model.decoder.config)
    text_config.vocab_size = vocabulary
    strategy: Literal["default", "full"] = "default" if has_cls(vision.config) and not spec.cls else "full"
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=text_config,
        image_token_index=image_id,
        image_seq_length=spec.frame().grid.count,
        projector_hidden_act="gelu",
        vision_feature_layer=spec.layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    state = {f"model.vision_tower.{name}": tensor for name, tensor in vision.state_dict().items()}
    fill(llava, state | _projector_state(tower) | text)
    llava.generation_config = model.decoder.generation_config
    return Llava(llava, _processor(spec, vision.config, strategy, tokenizer, template))


def _whole_vision(spec: Clip, tower: Tower) -> Any:
    """Returns the tower with the layers above the one that is read, as programs that load LLaVA expect it."""
    assert isinstance(tower.encoder, ClipEncoder)
    vision = clip_model(spec.name)
    unexpected = vision.load_state_dict(tower.encoder.model.state_dict(), strict=False).unexpected_keys
    assert not unexpected, unexpected
    return vision


def _projector_state(tower: Tower) -> dict[str, Tensor]:
    assert isinstance(tower.adapter, Projector)
    to = {"layers.0": "linear_1", "layers.2": "linear_2"}
    return {
        f"model.multi_modal_projector.{to[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor
        for name, tensor in tower.adapter.state_dict().items()
    }


def _text_state(model: MultimodalModel, size: int) -> tuple[dict[str, Tensor], int]:
    """Returns the decoder's weights under LLaVA's names, with at least `size` rows, and the number of rows."""
    decoder = model.decoder
    state = merged_state(decoder)
    embedding, head = _name_of(decoder, decoder.get_input_embeddings()), _name_of(decoder, model.head)
    rows = len(state[f"{embedding}.weight"])
    if rows < size:
        for name in (f"{embedding}.weight", f"{head}.weight"):
            mean = state[name].float().mean(0, keepdim=True).to(state[name].dtype)
            state[name] = torch.cat([state[name], mean.expand(size - rows, -1)])
    prefix = decoder.base_model_prefix + "."
    named = {
        f"model.language_model.{name.removeprefix(prefix)}": tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    return named | {"lm_head.weight": state[f"{head}.weight"]}, max(rows, size)


def _name_of(root: torch.nn.Module, module: object) -> str:
    return cast(str, next(name for name, other in root.named_modules() if other is module))


def _processor(
    spec: Clip, vision: Any, strategy: str, tokenizer: PreTrainedTokenizerFast, template: str
) -> LlavaProcessor:
    frame = spec.frame()
    square = {"height": frame.height, "width": frame.width}
    images = LlavaImageProcessor(
        do_pad=frame.aspect == "pad",
        do_center_crop=frame.aspect == "crop",
        size={"shortest_edge": frame.height} if frame.aspect == "crop" else square,
        crop_size=square,
        image_mean=list(frame.mean),
        image_std=list(frame.std),
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=int(has_cls(vision)),
        chat_template=_FLATTEN + template,
    )
