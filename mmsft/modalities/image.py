"""What all picture towers share: how a picture is read, fitted and normalised."""

from typing import Protocol

from torch import Tensor

from mmsft.modalities.picture import Frame, check_picture, read_picture
from mmsft.modalities.spec import File, Modality, Options
from mmsft.types import Grid

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


class Picture(Modality, Protocol):
    """A modality whose media are pictures of one size."""

    def frame(self) -> Frame:
        """Returns what the tower expects and gives, without loading its weights."""
        ...

    def probe(self, file: File, options: Options) -> Grid:
        """Checks the header; every picture gives the same features."""
        check_picture(file)
        return self.frame().grid

    def load(self, file: File, options: Options) -> dict[str, Tensor]:
        """Returns ``pixels`` [3, H, W] as the tower was trained on them."""
        return {"pixels": self.frame().pixels(read_picture(file))}

    def settings(self) -> str:
        """Returns the fields, and what the weights' own settings say of pictures."""
        return f"{self!r} {self.frame()!r}"

    def blank(self, grid: Grid) -> dict[str, Tensor]:
        """Returns a picture of the mean colour."""
        return {"pixels": self.frame().blank()}
