"""The modules between a tower and the language model."""

from collections.abc import Mapping
from typing import Any

from mmsft.adapters.mlp import Linear, Mlp, Mlp2xGelu
from mmsft.adapters.qformer import QFormer
from mmsft.adapters.resampler import Resampler
from mmsft.adapters.spec import Adapter
from mmsft.adapters.video_qformer import AudioQFormer, VideoQFormer
from mmsft.config import Spec
from mmsft.config.kinds import resolve_kind

ADAPTERS: dict[str, type] = {
    "linear": Linear,
    "mlp2x_gelu": Mlp2xGelu,
    "mlp": Mlp,
    "resampler": Resampler,
    "qformer": QFormer,
    "video_qformer": VideoQFormer,
    "audio_qformer": AudioQFormer,
}


def adapter_spec(settings: Mapping[str, Any]) -> Spec:
    """Builds an adapter from a config's mapping.

    Raises:
        ValueError: with all that is wrong in the mapping.
    """
    return resolve_kind(ADAPTERS, Adapter, settings)


__all__ = [
    "ADAPTERS",
    "AudioQFormer",
    "Linear",
    "Mlp",
    "Mlp2xGelu",
    "QFormer",
    "Resampler",
    "VideoQFormer",
    "adapter_spec",
]
