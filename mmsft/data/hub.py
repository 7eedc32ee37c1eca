"""Data sets of the Hugging Face hub: fetched once into its cache, then files like others."""

import re
from pathlib import Path
from typing import Final

from mmsft import assets
from mmsft.errors import ConfigError
from mmsft.modalities.hub import look_for_hub

HUB: Final = "hub:"
"""Begins the path of a file on the hub: ``hub:OWNER/NAME/FILE``, or ``hub:OWNER/NAME@REVISION/FILE``."""
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


def _fetched(path: str, id: str, revision: str | None, file: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # kept for others, says a comment there

    why = look_for_hub()
    try:
        if "*" not in file and "?" not in file and not file.endswith("/") and file:
            return Path(hf_hub_download(id, file, repo_type="dataset", revision=revision))
        pattern = f"{file}*" if file.endswith("/") or not file else file
        root = snapshot_download(id, repo_type="dataset", revision=revision, allow_patterns=pattern)
        return Path(root) / file
    except (HfHubHTTPError, OSError, ValueError, httpx.HTTPError) as error:
        reason = why or " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{path}: can't be fetched: {reason}; is its name right, and may you read it (`hf auth login`)? Where "
            f"there is a network: `hf download --repo-type dataset {id}`; then name the file"
        ) from error
