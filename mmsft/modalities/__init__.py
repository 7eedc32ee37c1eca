"""The kinds of media that a tower can read."""

from collections.abc import Mapping
from typing import Any

from mmsft.config import Spec
from mmsft.config.kinds import resolve_kind
from mmsft.modalities.blip_tower import Blip
from mmsft.modalities.clip_tower import Clip
from mmsft.modalities.open_clip_tower import OpenClip
from mmsft.modalities.several import Several
from mmsft.modalities.spec import Modality
from mmsft.modalities.tiles import Tiles
from mmsft.modalities.timm_tower import Timm

MODALITIES: dict[str, type] = {
    "clip": Clip,
    "blip": Blip,
    "open_clip": OpenClip,
    "timm": Timm,
    "tiles": Tiles,
    "several": Several,
}


def modality_spec(settings: Mapping[str, Any]) -> Spec:
    """Builds a modality from a config's mapping.

    Raises:
        ValueError: with all that is wrong in the mapping.
    """
    return resolve_kind(MODALITIES, Modality, settings)


__all__ = ["MODALITIES", "Blip", "Clip", "OpenClip", "Several", "Tiles", "Timm", "modality_spec"]
