"""Photos and short clips, each with questions whose answers were written by looking at them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mmsft.assets.rows import asked, write_lines

_PHOTOS: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "astronaut.png": [
        ("Who is in the picture?", "A smiling astronaut in an orange space suit."),
        ("What is behind her?", "A flag on the left, and a model of a space shuttle with its rockets on the right."),
    ],
    "brick.png": [("What is this surface made of?", "Of bricks that stand upright, with light joints between them.")],
    "camera.png": [
        ("What is the man doing?", "He looks through a camera that stands on a tripod."),
        ("Where is he?", "On a lawn, with the towers of a city far behind him."),
    ],
    "cell.png": [("What is the bright disc?", "A single cell, seen through a microscope.")],
    "chelsea.png": [
        ("Which animal is this?", "A ginger tabby cat."),
        ("Where does it look?", "Past the camera, to the right; its ears are up."),
    ],
    "coffee.png": [
        ("What is in the cup?", "An espresso with a light foam."),
        ("Describe the picture.", "A white and red cup of espresso on a red saucer with a spoon, on a wooden table."),
    ],
    "coins.png": [
        ("How many coins are there?", "24: four rows of six."),
        ("What do they look like?", "Old and worn, with heads and figures on them, on a dark ground."),
    ],
    "grass.png": [("What covers the ground?", "Grass, dense and tangled.")],
    "gravel.png": [("What covers the ground?", "Gravel: small stones of many shapes.")],
    "horse.png": [("Which animal is this?", "A horse, as a black silhouette that looks to the right.")],
    "hubble_deep_field.jpg": [
        ("What are the spots of light?", "Galaxies, thousands of them, in a small part of the sky."),
        ("Who could have taken the picture?", "A telescope in space: it is Hubble's deep field."),
    ],
    "moon.png": [("What is this a picture of?", "The surface of the moon, with craters of many sizes.")],
    "page.png": [
        ("What does the heading say?", "Region-based segmentation"),
        ("What is the last line?", ">>> markers = np.zeros_like(coins)"),
    ],
    "retina.jpg": [("What is shown?", "The back of an eye: the retina, with its vessels and the bright optic disc.")],
    "rocket.jpg": [
        ("What stands in the middle?", "A white rocket on its launch pad."),
        ("Which time of the day is it?", "Dusk or dawn: the sky is dark blue, and the lights are on."),
    ],
    "text.png": [("How is the text written?", "By hand, in dark ink, seen from an angle.")],
}

_CLIPS: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "bigbuckbunny.mp4": [
        ("Who comes out of the hole?", "A big grey rabbit."),
        ("What does it do once it is out?", "It stands up, stretches its arms, and rubs its eyes."),
        ("Is this a photo or an animation?", "An animation."),
    ],
    "bikes.mp4": [
        ("Where does the clip take place?", "In the streets of a city, with cars, a taxi and houses of brick."),
        ("What is shown again and again towards its end?", "Bicycles that are parked."),
    ],
    "cockatoo.mp4": [
        ("Which animal is in the clip?", "A cockatoo with pink and white feathers."),
        ("What does it do?", "It walks up to the camera until its beak fills the picture, then it draws back."),
    ],
    "realshort.mp4": [("What stands at the window?", "A plant in a clay pot, among papers and smaller plants.")],
}


def prepare_photos(folder: Path) -> None:
    """Keeps the photos that are asked about, and writes the questions."""
    _prepare(folder, "image", _PHOTOS)


def prepare_clips(folder: Path) -> None:
    """Keeps the clips that are asked about, and writes the questions."""
    _prepare(folder, "video", _CLIPS)


def _prepare(folder: Path, modality: str, known: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    for file in [file for file in folder.rglob("*") if file.is_file() and file.name not in known]:
        file.unlink()

    def rows() -> Iterator[dict[str, Any]]:
        for name, pairs in known.items():
            for number, (question, answer) in enumerate(pairs, 1):
                yield asked(f"{Path(name).stem}-{number}", {modality: name}, question, answer)

    write_lines(folder / "questions.jsonl", rows())
