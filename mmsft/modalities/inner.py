"""Picture towers inside of other kinds, which a config states as a mapping of their own."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, cast

from pydantic import PlainValidator

from mmsft.config import Spec
from mmsft.modalities.image import Picture


def _picture(value: Any) -> Spec:
    from mmsft.modalities import modality_spec  # whose table has the kinds that take other kinds

    if not isinstance(value, Spec):
        if not isinstance(value, Mapping):
            raise ValueError("write a mapping with a `kind`")
        value = modality_spec(value)
    if Picture not in type(value.value).__mro__:
        raise ValueError(f"{value.kind} isn't a tower for pictures of one size; take clip, open_clip, timm or blip")
    return cast(Spec, value)


PictureSpec: TypeAlias = Annotated[Spec, PlainValidator(_picture)]
"""A picture tower as a setting of another kind."""


def picture_of(spec: Spec) -> Picture:
    """Returns the picture tower of a `PictureSpec`."""
    return cast(Picture, spec.value)
