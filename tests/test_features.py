"""The store of features: what is written is read back to the bit, and nothing that is broken there does harm."""

import dataclasses
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import mmsft.features
from mmsft.errors import DataError
from mmsft.features import FeatureStore, Keeper, identity
from mmsft.modalities import Clip
from tests.model.tiny import clip_folder

GB = 10**9


def keeper(root: Path, limit: int = GB, name: str = "a") -> Keeper:
    found = {"encoder": name}
    return Keeper(FeatureStore.of(root, found), found, limit)


def keep(into: Keeper, values: Mapping[str, Tensor]) -> None:
    into.put(tuple(values), list(values.values()), read=0)
    into.close()


def features(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_read_as_they_were_written_also_in_another_process(tmp_path: Path, dtype: torch.dtype) -> None:
    store = keeper(tmp_path).store
    assert store.get("aa1", 4) is None
    keep(keeper(tmp_path), {"aa1": features(dtype=dtype)})
    found = pickle.loads(pickle.dumps(store)).get("aa1", 4)
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, features(dtype=dtype))


@pytest.mark.parametrize("harm", ["truncated", "a bit", "empty", "other features", "no checksum"])
def test_a_spoilt_file_is_named_and_encoded_again(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    keep(keeper(tmp_path), {"aa1": features()})
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-3] ^= 16
    spoilt = {"truncated": file.read_bytes()[:-20], "a bit": bytes(content), "empty": b""}
    if harm in spoilt:
        file.write_bytes(spoilt[harm])
    elif harm == "other features":
        file.unlink()
        keep(keeper(tmp_path), {"aa1": features()[:3]})
    else:
        save_file({"values": features()}, file)
    store = keeper(tmp_path).store
    assert store.get("aa1", 4) is None
    assert str(file) in caplog.text
    keep(keeper(tmp_path), {"aa1": features()})
    again = store.get("aa1", 4)
    assert again is not None
    assert torch.equal(again, features())


def test_two_clips_of_one_file_differ_and_two_names_of_one_picture_do_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same")
    store = FeatureStore(tmp_path)
    assert store.digest(tmp_path / "a", {}) == store.digest(tmp_path / "b", {}) == store.digest(b"same", {})
    clips = [store.digest(tmp_path / "a", {"start": start, "end": 9}) for start in (1, 2)]
    assert len({*clips, store.digest(tmp_path / "a", {})}) == 3
    assert store.digest(b"same", {"end": 9, "start": 1}) == clips[0]


def test_a_file_that_changes_has_another_key(tmp_path: Path) -> None:
    store, file = FeatureStore(tmp_path), tmp_path / "a"
    file.write_bytes(b"1234")
    before = store.digest(file, {})
    file.write_bytes(b"5678")
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 10**9))
    assert store.digest(file, {}) != before


def clip(folder: Path, **changes: Any) -> Clip:
    if not folder.exists():
        torch.manual_seed(0)
        clip_folder(folder)
    return Clip(str(folder), **changes)


def test_an_encoders_identity_follows_from_weights_settings_and_how_it_computes(tmp_path: Path) -> None:
    modality = clip(tmp_path / "clip")
    encoder = modality.encoder()
    base = identity(modality, encoder, "bf16 on cpu")
    assert identity(clip(tmp_path / "clip"), modality.encoder(), "bf16 on cpu") == base
    others = [
        identity(modality, encoder, "fp32 on cpu"),
        identity(clip(tmp_path / "clip", aspect="crop"), encoder, "bf16 on cpu"),
        identity(modality, modality.encoder().bfloat16(), "bf16 on cpu"),
    ]
    with torch.no_grad():
        next(encoder.parameters())[..., -1] += 1e-6
    others.append(identity(modality, encoder, "bf16 on cpu"))
    assert len({FeatureStore.of(tmp_path, found).folder for found in [base, *others]}) == 5


def test_other_settings_of_the_same_weights_are_another_encoder(tmp_path: Path) -> None:
    modality = clip(tmp_path / "clip")
    encoder = modality.encoder()
    before = identity(modality, encoder, "fp32")
    config: Any = next(part.config for part in encoder.modules() if hasattr(part, "config"))
    config.hidden_act = "gelu_new"
    assert identity(modality, encoder, "fp32") != before


def test_a_users_code_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tactile_of_a_user.py"
    code = "from torch import nn\nclass Encoder(nn.Module):\n    scale = {}\n"
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text(code.format(1))
    import tactile_of_a_user  # type: ignore[import-not-found]

    modality = clip(tmp_path / "clip")
    encoder: nn.Module = tactile_of_a_user.Encoder()
    before = identity(modality, encoder, "fp32")
    assert identity(modality, encoder, "fp32") == before
    file.write_text(code.format(2))
    assert identity(modality, encoder, "fp32") != before


def test_code_that_is_in_no_file_is_refused(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "typed_in"}
    exec("import sys, types\nfrom torch import nn\nclass Encoder(nn.Module): pass", names)
    import sys
    import types

    sys.modules["typed_in"] = types.ModuleType("typed_in")
    try:
        with pytest.raises(DataError, match="typed_in is in no file"):
            identity(clip(tmp_path / "clip"), names["Encoder"](), "fp32")
    finally:
        del sys.modules["typed_in"]


def test_a_full_store_stops_writing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = keeper(tmp_path)
    keep(one, {"aa1": features()})
    used = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    full = keeper(tmp_path, limit=used + features().nbytes + 10)
    keep(full, {"aa2": features(2), "aa3": features(3), "aa4": features(4)})
    assert len(files(tmp_path)) == 2
    assert "is full" in caplog.text
    assert "features.limit" in caplog.text


def test_encoders_that_nobody_used_for_a_day_make_room_the_longest_idle_first(tmp_path: Path) -> None:
    for name, days in (("old", 3), ("older", 9), ("new", 0)):
        keep(keeper(tmp_path, name=name), {"aa1": features()})
        manifest = keeper(tmp_path, name=name).store.folder / "encoder.json"
        os.utime(manifest, (time.time() - days * 86400 - 60,) * 2)
    used = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    keep(keeper(tmp_path, limit=used + 50, name="mine"), {"aa1": features()})
    there = [name for name in ("old", "older", "new", "mine") if files(keeper(tmp_path, name=name).store.folder)]
    assert there == ["old", "new", "mine"]


@pytest.mark.parametrize("trouble", ["a file", "no space"])
def test_what_cannot_be_written_is_said_once_and_stops_no_training(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    if trouble == "a file":
        root.write_text("")
    else:

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
    into = keeper(root)
    for number in range(3):
        into.put((f"aa{number}",), [features()], read=0)
    into.close()
    keep(into, {"aa9": features()})
    assert caplog.text.count("can't be written to") == 1
    assert "features.folder" in caplog.text
    assert (into.read, into.encoded) == (0, 4)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file != root]


def test_a_writer_that_dies_hangs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: Keeper, digest: str, values: Tensor) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(Keeper, "_write", dies)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    into = keeper(tmp_path)
    for number in range(50):
        into.put((f"aa{number}",), [features()], read=0)
    into.close()


def test_half_written_files_of_killed_processes_are_taken_away(tmp_path: Path) -> None:
    keep(keeper(tmp_path), {"aa1": features()})
    folder = files(tmp_path)[0].parent
    for name, hours in ((".aa2.77.tmp", 30), (".aa3.78.tmp", 1)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - hours * 3600,) * 2)
    keep(keeper(tmp_path), {"aa4": features()})
    assert [file.name for file in folder.glob(".*.tmp")] == [".aa3.78.tmp"]


def test_the_folder_says_which_encoder_it_is_of(tmp_path: Path) -> None:
    modality = dataclasses.replace(clip(tmp_path / "clip"), aspect="crop")
    found = identity(modality, modality.encoder(), "fp32 on cpu")
    keep(Keeper(FeatureStore.of(tmp_path / "store", found), found, GB), {"aa1": features()})
    (manifest,) = (tmp_path / "store").rglob("encoder.json")
    assert "aspect='crop'" in manifest.read_text()
    assert mmsft.features.FeatureStore.of(tmp_path / "store", found).folder == manifest.parent
