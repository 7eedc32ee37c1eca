"""Sweet Home 3D's furniture: points on the surface of each piece, with its colours, its name, kind and picture."""

import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mmsft.assets.rows import asked, write_lines

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POINTS: Final = 8192
"""Points of a piece, as PointLLM and LAMM have them."""

_ENTRY: Final = re.compile(r"(\w+)#(\d+)=(.*)")
_CATALOGUE: Final = "PluginFurnitureCatalog.properties"
_GREY: Final = (0.5, 0.5, 0.5)


class _Mesh(NamedTuple):
    """A surface: vertices [n, 3], triangles of their numbers [m, 3], and a colour each [m, 3] of 0 … 1."""

    vertices: "NDArray[np.float64]"
    triangles: "NDArray[np.int64]"
    colours: "NDArray[np.float64]"


def prepare_furniture(folder: Path) -> None:
    """Writes points and picture of each piece, and the rows about them; the catalogues go."""
    (folder / "points").mkdir()
    (folder / "icons").mkdir()
    catalogues = sorted(folder.glob("*.sh3f"))
    write_lines(folder / "furniture.jsonl", (row for file in catalogues for row in _pieces(folder, file)))
    for file in catalogues:
        file.unlink()


def _pieces(folder: Path, file: Path) -> Iterator[dict[str, Any]]:
    import numpy as np

    with zipfile.ZipFile(file) as catalogue:
        for number, entry in _entries(catalogue.read(_CATALOGUE).decode("latin-1")).items():
            model, icon = entry["model"].removeprefix("/"), entry["icon"].removeprefix("/")
            mesh = _mesh(catalogue, model)
            if mesh is None:
                continue
            name = f"{file.stem}-{number}"
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
            np.save(folder / "points" / f"{name}.npy", _sampled(mesh, np.random.default_rng(seed)))
            (folder / "icons" / f"{name}.png").write_bytes(catalogue.read(icon))
            told = {"creator": entry.get("creator", ""), "licence": "CC0" if "CC-0" in file.stem else "CC-BY-3.0"}
            for what, key in (("points", f"points/{name}.npy"), ("image", f"icons/{name}.png")):
                medium = {what: key}
                yield asked(f"{name}-{what}", medium, "What is this piece of furniture?", entry["name"], **told)
                yield asked(f"{name}-{what}-kind", medium, "To what kind does it belong?", entry["category"], **told)


def _entries(text: str) -> dict[int, dict[str, str]]:
    """Returns the pieces of a catalogue by their numbers; it is a file of Java properties, in Latin-1 with escapes."""
    found: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        match = _ENTRY.fullmatch(line.strip())
        if match:
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), match[3]).replace("\\", "")
            found.setdefault(int(match[2]), {})[match[1]] = value
    return {number: entry for number, entry in found.items() if {"name", "category", "icon", "model"} <= set(entry)}


def _mesh(catalogue: zipfile.ZipFile, model: str) -> _Mesh | None:
    """Reads a model of Wavefront's OBJ format; None where it isn't there, or has no surface."""
    import numpy as np

    if model not in catalogue.namelist():
        return None
    vertices: list[list[float]] = []
    triangles: list[tuple[int, int, int]] = []
    colours: list[tuple[float, ...]] = []
    palette: dict[str, tuple[float, ...]] = {}
    colour: tuple[float, ...] = _GREY
    for line in catalogue.read(model).decode("latin-1").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "v":
            vertices.append([float(value) for value in rest.split()[:3]])
        elif word == "f":
            corners = [int(corner.partition("/")[0]) for corner in rest.split()]
            corners = [corner - 1 if corner > 0 else len(vertices) + corner for corner in corners]
            fan = [(corners[0], corners[at], corners[at + 1]) for at in range(1, len(corners) - 1)]
            triangles += fan
            colours += [colour] * len(fan)
        elif word == "mtllib":
            palette = _palette(catalogue, str(PurePosixPath(model).parent / rest.strip()))
        elif word == "usemtl":
            colour = palette.get(rest.strip(), _GREY)
    return _Mesh(np.array(vertices), np.array(triangles), np.array(colours)) if triangles else None


def _palette(catalogue: zipfile.ZipFile, name: str) -> dict[str, tuple[float, ...]]:
    """Returns the diffuse colours of a file of materials by their names; textures are left aside."""
    found: dict[str, tuple[float, ...]] = {}
    material = ""
    for line in catalogue.read(name).decode("latin-1").splitlines() if name in catalogue.namelist() else ():
        word, _, rest = line.strip().partition(" ")
        if word == "newmtl":
            material = rest.strip()
        elif word == "Kd":
            found[material] = tuple(float(value) for value in rest.split()[:3])
    return found


def _sampled(mesh: _Mesh, chance: "np.random.Generator") -> "NDArray[np.float32]":
    """Returns points [POINTS, 6], even over the surface: x, y, z in the model's unit, red, green, blue of 0 … 1."""
    import numpy as np

    a, b, c = (mesh.vertices[mesh.triangles[:, corner]] for corner in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    part = area / area.sum() if area.sum() > 0 else None
    drawn = chance.choice(len(area), POINTS, p=part)
    # A point of a triangle by two even numbers (Osada et al. 2002, "Shape distributions", section 4.2).
    root, along = np.sqrt(chance.random((POINTS, 1))), chance.random((POINTS, 1))
    places = (1 - root) * a[drawn] + root * (1 - along) * b[drawn] + root * along * c[drawn]
    return np.concatenate([places, mesh.colours[drawn]], axis=1).astype(np.float32)
