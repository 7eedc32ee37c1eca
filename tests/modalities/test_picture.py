import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor

from mmsft.errors import DataError
from mmsft.modalities.image import CLIP_MEAN, CLIP_STD
from mmsft.modalities.picture import Aspect, Frame, check_picture, read_picture
from mmsft.types import Grid


def frame(aspect: Aspect, side: int = 32) -> Frame:
    return Frame(side, side, CLIP_MEAN, CLIP_STD, "bicubic", aspect, Grid(1, 2, 2))


def noise(width: int, height: int) -> Image.Image:
    """Returns a picture that is smooth, as pictures are, and different in every corner."""
    small = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Returns a PNG whose header claims a size, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# 8-bit steps of the resized picture, in units of CLIP's std: transformers resizes with torch, we with Pillow.
STEPS = 0.1 / 255 / min(CLIP_STD)


@pytest.mark.parametrize("size", [(40, 40), (60, 40), (33, 57)])
def test_padded_pixels_are_those_of_transformers_llava_processor(size: tuple[int, int]) -> None:
    processor = LlavaImageProcessor(
        do_pad=True, size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False
    )
    expected = processor(noise(*size), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(frame("pad").pixels(noise(*size)), expected, atol=STEPS, rtol=0)


@pytest.mark.parametrize("size", [(40, 40), (64, 32)])
def test_cropped_pixels_are_those_of_transformers_clip_processor(size: tuple[int, int]) -> None:
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(noise(*size), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(frame("crop").pixels(noise(*size)), expected, atol=STEPS, rtol=0)


def test_padding_keeps_the_proportions_and_fills_with_the_mean_colour() -> None:
    pixels = frame("pad").pixels(Image.new("RGB", (64, 32), "white"))
    # The mean colour is rounded to 8 bits.
    assert pixels[:, :5].abs().max() < 1 / 255 / min(CLIP_STD)
    assert pixels[:, 10:22].min() > 1


@pytest.mark.parametrize("aspect", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (5, 4), (900, 700)])
def test_every_size_fits(aspect: Aspect, size: tuple[int, int]) -> None:
    pixels = frame(aspect).pixels(Image.new("RGB", size))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32


def test_a_blank_is_the_mean_colour() -> None:
    assert not frame("pad").blank().any()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 128 * 256, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]) -> None:
    image = read_picture(encoded(Image.new(mode, (3, 2), colour)))
    assert (image.mode, image.size, image.getpixel((1, 1))) == ("RGB", (3, 2), expected)


def test_cmyk_and_palettes_with_transparency_become_rgb() -> None:
    assert read_picture(encoded(Image.new("CMYK", (2, 2)), "JPEG")).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 3)
    palette.putpalette([9] * 768)
    assert read_picture(encoded(palette, transparency=3)).getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(encoded(palette)).getpixel((0, 0)) == (9, 9, 9)


def test_a_picture_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    image = read_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_floating_point_pixels_are_refused_with_the_way_out(tmp_path: Path) -> None:
    Image.new("F", (2, 2)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"mode F.*convert the picture"):
        read_picture(tmp_path / "a.tiff")


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (10_001, 10_000), (60_000, 60_000)])
def test_a_picture_that_claims_too_many_pixels_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(DataError, match=r"pixels by its header, more than the limit of 100,000,000"):
        check_picture(png_of_size(width, height))


def test_a_truncated_picture_passes_the_header_and_fails_to_decode(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(noise(200, 200), "JPEG")[:-2000])
    check_picture(path)
    with pytest.raises(DataError, match=r"the picture can't be decoded .*is the file whole"):
        read_picture(path)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(DataError, match="not a picture that Pillow can read"):
        check_picture(data)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        check_picture(tmp_path / "nowhere.png")


WHOLE = [encoded(noise(40, 30), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8), st.data())
def test_a_damaged_picture_is_read_or_is_a_data_error(
    whole: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place, value in changes:
        if damaged:
            damaged[place % len(damaged)] = value
    with suppress(DataError):
        assert read_picture(bytes(damaged)).mode == "RGB"
