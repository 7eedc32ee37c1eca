"""Lets one run at a time train in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmsft.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: there is no lock there that the kernel takes back when a process dies
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the run folder and holds its lock, which ends with the process at the latest.

    Raises:
        ConfigError: another process holds it, or the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise unwritable(folder, error) from error
    with file:
        if fcntl is not None:
            try:
                # Not flock: data workers would inherit it, and hold it for seconds after their parent was killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise ConfigError(
                    f"out: another process trains in {folder}; wait until it is over, or give this run another `out`"
                ) from error
            except OSError as error:
                raise unwritable(folder, error) from error
        yield


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Returns what a run folder that refuses is told as."""
    return ConfigError(f"out: the run folder {folder} can't be written: {error}")
