"""Where pretrained models come from: a hub id, a folder, or a fetched asset."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mmsft.assets import PREFIX, resolve
from mmsft.errors import ConfigError, suggest

_WAIT_S = 5.0
log = logging.getLogger(__name__)


def located(name: str) -> str:
    """Returns what `from_pretrained` takes: a hub id as it is, anything else as a path.

    Raises:
        ConfigError: the path doesn't exist, or the asset isn't fetched.
    """
    if name.startswith(PREFIX):
        return str(resolve(name))
    path = resolve(name)
    if path.exists():
        return str(path)
    if not _may_be_id(name):
        raise ConfigError(f"{name}: no such file or folder{_near(path)} (looked for {path.absolute()})")
    look_for_hub()
    return name


def _may_be_id(name: str) -> bool:
    """Tells what the hub could know: ``owner/model``, or a single word of its first days such as gpt2."""
    if name.startswith((".", "/", "~", "$")) or "\\" in name:
        return False
    return name.count("/") == 1 or ("/" not in name and not Path(name).suffix)


def _near(path: Path) -> str:
    """Suggests what lies beside the first part of the path that isn't there."""
    missing = path.absolute()
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        return suggest(missing.name, [other.name for other in missing.parent.iterdir()])
    except OSError:  # a folder that may not be listed
        return ""


@cache
def look_for_hub() -> str:
    """Tries once in a process whether the hub answers; if not, only its local cache is asked from then on.

    Left to itself, the library tries six times over 23 seconds for each file of a model, also for those in its cache.

    Returns:
        Why the hub can't be asked, or an empty string.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # kept for others, says a comment there

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_WAIT_S)
    except httpx.HTTPError as error:
        # The library has no switch for this but the environment variable, which it has read already.
        constants.HF_HUB_OFFLINE = True
        reason = f"{constants.ENDPOINT} can't be reached ({' '.join(str(error).split()) or type(error).__name__})"
        log.warning("%s: until this process ends, models come from this machine's cache of it", reason)
        return reason
    return ""


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Turns the errors of a library that loads `name` into ConfigErrors.

    Raises:
        ConfigError: with what is to be loaded, the library's reason and the ways out.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # as above
    from safetensors import SafetensorError

    try:
        yield
    except (
        *(OSError, ValueError, LookupError, ImportError, RuntimeError, AssertionError),
        *(SafetensorError, NotASafetensorsRepoError, SafetensorsParsingError, httpx.HTTPError),
    ) as error:
        reason = " ".join(str(error).split())[:500]
        ways = "name a folder, asset:NAME, or a hub id that this machine can reach or has in its cache"
        if Path(name).exists():
            ways = "is the folder complete?"
        elif constants.is_offline_mode() and isinstance(error, OSError):
            reason = f"{look_for_hub()}, and the hub's cache {constants.HF_HUB_CACHE} has no complete copy"
        if not Path(name).exists() and "/" in name and (path := resolve(name)).parent.is_dir():
            ways += f"; there is no {path.name} in the folder {path.parent.absolute()} either{_near(path)}"
        raise ConfigError(f"{what} {name!r} can't be loaded: {reason}; {ways}") from error
