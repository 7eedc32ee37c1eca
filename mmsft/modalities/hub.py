"""Where pretrained models come from: a hub id, a folder, or a fetched asset."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmsft.assets import PREFIX, resolve
from mmsft.errors import ConfigError


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
    if name.startswith(("/", "./", "../", "~", "$")) or name.count("/") != 1:
        if "/" not in name and not path.suffix:
            return name  # a hub id of the first days, e.g. gpt2
        raise ConfigError(f"{name}: no such file or folder (looked for {path.absolute()})")
    return name


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Turns the errors of a library that loads `name` into ConfigErrors.

    Raises:
        ConfigError: with what is to be loaded, the library's reason and the ways out.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, ImportError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        ways = (
            "is the folder complete?"
            if Path(name).exists()
            else "name a folder, asset:NAME, or a hub id that this machine can reach or has in its cache"
        )
        raise ConfigError(f"{what} {name!r} can't be loaded: {reason[:500]}; {ways}") from error
