"""Reads pictures: size from the header, pixels as a tower wants them, and a DataError for what is no honest picture."""

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mmsft.errors import DataError
from mmsft.modalities.spec import File
from mmsft.types import Grid

MAX_PIXELS = 100_000_000
"""A picture of more pixels is refused before it is decoded: 300 MB a picture in each data worker."""

_STRIP = 16
"""A picture that would cover more than so many inputs is cropped before it is resized."""

Aspect: TypeAlias = Literal["pad", "crop", "stretch"]
Colour: TypeAlias = tuple[float, float, float]

# Pillow's decoders report a broken file by whatever they run into first.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, AttributeError, ArithmeticError, struct.error,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frame:
    """What a tower expects of a picture, and the features it makes of it.

    Attributes:
        height: of its input in pixels.
        width: of its input in pixels.
        mean: subtracted from each channel of 0 … 1.
        std: divides each channel.
        interpolation: how pictures are resized.
        aspect: ``pad`` to the input's shape with the mean colour (LLaVA-1.5), ``crop`` the middle, or ``stretch``.
        grid: rows × columns of features.
    """

    height: int
    width: int
    mean: Colour
    std: Colour
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"]
    aspect: Aspect
    grid: Grid

    def pixels(self, image: Image.Image) -> Tensor:
        """Returns an RGB picture as the tower's input [3, height, width], float32."""
        return self._normalised(self._fitted(image))

    def tiles(self, image: Image.Image, rows: int, columns: int) -> Tensor:
        """Returns an RGB picture as tiles [rows · columns, 3, height, width], float32, row by row.

        It is made as large as fits all of them with its sides' ratio, and stands in the middle on black.
        """
        height, width = rows * self.height, columns * self.width
        scale = min(height / image.height, width / image.width)
        size = (min(math.ceil(image.height * scale), height), min(math.ceil(image.width * scale), width))
        canvas = torch.zeros(3, height, width, dtype=torch.uint8)
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        canvas[:, top : top + size[0], left : left + size[1]] = self._resized(image, *size)
        tiles = canvas.unflatten(2, (columns, self.width)).unflatten(1, (rows, self.height)).permute(1, 3, 0, 2, 4)
        return self._normalised(tiles.flatten(0, 1))

    def blank(self) -> Tensor:
        """Returns a picture of the mean colour."""
        return torch.zeros(3, self.height, self.width)

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(colour)[:, None, None] for colour in (self.mean, self.std))
        return pixels.contiguous().float().div_(255).sub_(mean).div_(std)

    def _fitted(self, image: Image.Image) -> Tensor:
        """Returns a picture [3, height, width] of 8 bits."""
        if self.aspect == "stretch":
            return self._resized(image, self.height, self.width)
        if self.aspect == "crop":
            return self._cropped(image)
        whole = self._whole(image)
        if whole[0] * whole[1] > MAX_PIXELS:
            # A strip of 1 × 20,000 would become a square of 400 million pixels: such ones shrink before they are
            # padded. All others are resized once, as the processor of an exported model does it.
            image = image.reduce(max(1, image.width // (4 * self.width), image.height // (4 * self.height)))
            whole = self._whole(image)
        canvas = Image.new("RGB", whole, tuple(int(255 * value) for value in self.mean))
        canvas.paste(image, ((whole[0] - image.width) // 2, (whole[1] - image.height) // 2))
        return self._resized(canvas, self.height, self.width)

    def _cropped(self, image: Image.Image) -> Tensor:
        """Resizes a picture until it just covers the input, and returns its middle, as CLIP's processor does."""
        height, width = self.height, int(image.width * self.height / image.height)
        if width < self.width:
            height, width = int(image.height * self.width / image.width), self.width
        if height * width > _STRIP * self.height * self.width:
            return self._resized(ImageOps.fit(image, (self.width, self.height)), self.height, self.width)
        top, left = (height - self.height) // 2, (width - self.width) // 2
        return self._resized(image, height, width)[:, top : top + self.height, left : left + self.width]

    def _resized(self, image: Image.Image, height: int, width: int) -> Tensor:
        """Returns a picture of another size [3, height, width], 8 bits."""
        if self.interpolation in ("lanczos", "nearest"):
            method = Image.Resampling[self.interpolation.upper()]
            return torch.from_numpy(np.array(image.resize((width, height), method))).permute(2, 0, 1)
        # Not Pillow: torch does it several times as fast, and the processors of transformers do it so. Colours lie side
        # by side here, as its fast way wants them.
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return F.interpolate(pixels[None], (height, width), mode=self.interpolation, antialias=True)[0]

    def _whole(self, image: Image.Image) -> tuple[int, int]:
        """Returns the smallest size of the input's shape that holds the picture."""
        return (max(image.width, round(image.height * self.width / self.height)),
                max(image.height, round(image.width * self.height / self.width)))  # fmt: skip


def check_picture(file: File) -> None:
    """Reads a picture's header.

    Raises:
        DataError: it isn't a picture, or one of more than `MAX_PIXELS`.
    """
    with _opened(file):
        pass


def picture_size(file: File) -> tuple[int, int]:
    """Returns a picture's width and height in pixels, upright as its EXIF data has it, from its header.

    Raises:
        DataError: as of `check_picture`.
    """
    with _opened(file) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def read_picture(file: File) -> Image.Image:
    """Decodes a picture to RGB, upright; transparency becomes white, an animation its first frame.

    Raises:
        DataError: it isn't a picture, is cut off, too large, or has no 8 or 16 bits a channel.
    """
    with _opened(file) as image:
        try:
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return _rgb(image)
        except _BROKEN as error:
            raise DataError(
                f"the picture can't be decoded ({error}); is the file whole? Fetch it again, or leave its row out"
            ) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts every value above 255 to white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise DataError(
            f"pixels are 32-bit numbers (mode {image.mode}) whose range nobody states; "
            "convert the picture to 8 or 16 bits a channel"
        )
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _opened(file: File) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Our own limit decides; Pillow warns below it and raises above.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(file) if isinstance(file, bytes) else file)
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(str(error).split("(")[-1].split(" pixels")[0])) from None
    except FileNotFoundError:
        raise DataError("no such file") from None
    except _BROKEN as error:
        raise DataError(f"not a picture that Pillow can read ({error})") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(_too_large(f"{image.width} by {image.height}"))
        yield image


def _too_large(size: str) -> str:
    return f"{size} pixels by its header, more than the limit of {MAX_PIXELS:,}; a decompression bomb, or shrink it"
