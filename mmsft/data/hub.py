"""Data sets of the Hugging Face hub: fetched once into its cache, then files like others."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mmsft import assets
from mmsft.errors import ConfigError, suggest
from mmsft.modalities.hub import look_for_hub

HUB: Final = "hub:"
"""Begins the path of a file on the hub: ``hub:OWNER/NAME/FILE``, or ``hub:OWNER/NAME@REVISION/FILE``."""
_URL: Final = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<revision>[^/]+)/(?P<file>.*)")
_FORM: Final = re.compile(r"hub:(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<file>.*)")


def place(path: str) -> Path:
    """Returns the file or folder that a source's path means; what is on the hub is fetched.

    Args:
        path: as of `assets.resolve`, or on the hub: a file, a pattern of files, or, ending in ``/``, a folder.

    Raises:
        ConfigError: there is no such asset, or the hub can't be reached and its cache has no copy, or it refuses.
    """
    if not path.startswith(HUB):
        return assets.resolve(path)
    found = _FORM.fullmatch(path)
    if found is None:
        raise ConfigError(f"{path}: write hub:OWNER/NAME/FILE, e.g. hub:tatsu-lab/alpaca/data/*.parquet")
    return _fetched(path, found["id"], found["revision"], found["file"])


def files_of(id: str, subset: str | None, folder: str | None, split: str) -> list[Path]:
    """Returns the files of a data set on the hub, fetched; subsets and splits are those of the `datasets` library.

    Which files they are is remembered, so that without a network the hub's own cache is enough.

    Args:
        id: ``OWNER/NAME``.
        subset: the configuration's name, where there are several.
        folder: of the repository; None = all of it.
        split: which files, e.g. ``train``.

    Raises:
        ConfigError: there is no such data set, subset or split, the hub can't be reached and its cache has no copy, or
            the library isn't installed.
    """
    try:
        from datasets import load_dataset_builder
    except ImportError:
        raise ConfigError(
            f"{id}: the datasets library divides data sets of the hub into splits: pip install 'mmsft[datasets]'; or "
            f"name the files, {HUB}{id}/FILE"
        ) from None
    from huggingface_hub import hf_hub_download

    key = hashlib.sha256(repr((id, subset, folder, split)).encode()).hexdigest()
    remembered = assets.cache_dir() / "splits" / f"{key[:32]}.json"
    with _fetching(id, id) as why:
        if why:
            urls = json.loads(remembered.read_text(encoding="utf-8"))
        else:
            splits = load_dataset_builder(id, name=subset, data_dir=folder).config.data_files or {}
            if split not in splits:
                listed = ", ".join(map(str, splits)) or "none"
                raise ConfigError(f"{id}: no split {split!r}{suggest(split, map(str, splits))}; there are {listed}")
            urls = [str(file) for file in splits[split]]
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text(json.dumps(urls), encoding="utf-8")
        found = [_on_hub(url, id) for url in urls]
        return [
            Path(hf_hub_download(it["id"], it["file"], repo_type="dataset", revision=it["revision"])) for it in found
        ]


def _on_hub(url: str, id: str) -> re.Match[str]:
    """Returns what a file's address on the hub says."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ConfigError(f"{id}: its card names {url}, which isn't on the hub: fetch that, and name the file")
    return found


def _fetched(path: str, id: str, revision: str | None, file: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    with _fetching(path, id):
        if "*" not in file and "?" not in file and not file.endswith("/") and file:
            return Path(hf_hub_download(id, file, repo_type="dataset", revision=revision))
        pattern = f"{file}*" if file.endswith("/") or not file else file
        root = snapshot_download(id, repo_type="dataset", revision=revision, allow_patterns=pattern)
        return Path(root) / file


@contextmanager
def _fetching(path: str, id: str) -> Iterator[str]:
    """Gives why the hub can't be asked, or an empty string; says of its errors what to do."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # kept for others, says a comment there

    why = look_for_hub()
    try:
        yield why
    except (HfHubHTTPError, OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        reason = why or " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{path}: can't be fetched: {reason}; is its name right, and may you read it (`hf auth login`)? Where "
            f"there is a network: `hf download --repo-type dataset {id}`; then name the file"
        ) from error
