"""What all picture towers share: how a picture is read, fitted and normalised."""

from collections.abc import Sequence
from typing import Final, Protocol

from torch import Tensor

from mmsft.modalities.picture import Frame, check_picture, read_picture
from mmsft.modalities.spec import File, Modality, Options
from mmsft.types import Grid

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
SIDE: Final = "average"
"""The option that says over how many features a side a picture's are averaged."""
_SIDES: Final = (2, 3, 4)


class Picture(Modality, Protocol):
    """A modality whose media are pictures of one size."""

    def frame(self) -> Frame:
        """Returns what the tower expects and gives, without loading its weights."""
        ...

    def probe(self, file: File, options: Options) -> Grid:
        """Checks the header; every picture gives the same features, unless they are averaged."""
        check_picture(file)
        return self.frame().grid.averaged(options.get(SIDE, 1))

    def smaller(self, file: File, options: Options) -> Sequence[Options]:
        """Returns the sides of squares whose features may be averaged: a tower takes pictures of one size only.

        With a class token the features are no rectangle, and there are none.
        """
        rows = self.frame().grid.h
        return [{**options, SIDE: side} for side in _SIDES if side > options.get(SIDE, 1)] if rows > 1 else []

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        """Returns ``pixels`` [3, H, W] as the tower was trained on them."""
        return {"pixels": self.frame().pixels(read_picture(file))}

    def settings(self) -> str:
        """Returns the fields, and what the weights' own settings say of pictures."""
        return f"{self!r} {self.frame()!r}"

    def blank(self, grid: Grid) -> dict[str, Tensor]:
        """Returns a picture of the mean colour."""
        return {"pixels": self.frame().blank()}
