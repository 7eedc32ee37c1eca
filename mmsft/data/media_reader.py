"""Finds how many tokens a medium takes, and loads it: the data side of a model's towers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mmsft.adapters.spec import Adapter, Layout
from mmsft.errors import DataError
from mmsft.modalities.spec import File, Modality
from mmsft.types import Grid, Media


@dataclass(frozen=True, slots=True)
class MediaReader:
    """The modality and adapter specs of a model, by tower; picklable, so that data workers hold one.

    Attributes:
        blank: read every medium as one without content, to see what a model answers without looking.
    """

    towers: Mapping[str, tuple[Modality, Adapter]]
    blank: bool = False

    def modality(self, media: Media) -> Modality:
        """Returns the modality that reads the medium.

        Raises:
            DataError: the model has no tower for it.
        """
        if media.modality not in self.towers:
            have = ", ".join(self.towers) or "none: it is text-only"
            raise DataError(
                f"{media}: the model has no {media.modality} tower (towers: {have}); "
                f"add model.towers.{media.modality} to the config, or leave these rows out"
            )
        return self.towers[media.modality][0]

    def apart(self, media: Media) -> bool:
        """Tells whether the medium becomes other tokens for each question about it."""
        return media.modality in self.towers and self.towers[media.modality][1].reads_context

    def grid(self, media: Media) -> Grid:
        """Returns the features that the medium gives, from its header."""
        modality = self.modality(media)
        with _naming(media):
            return modality.probe(file_of(media), dict(media.options))

    def layout(self, media: Media) -> Layout:
        """Returns what the medium occupies among the tokens."""
        grid = self.grid(media)
        return self.towers[media.modality][1].layout(grid)

    def load(self, media: Media) -> dict[str, Tensor]:
        """Reads and decodes the medium."""
        modality = self.modality(media)
        if self.blank:
            return modality.blank(self.grid(media))
        with _naming(media):
            return modality.load(file_of(media), dict(media.options))


def file_of(media: Media) -> File:
    """Returns where the medium lies, or its bytes."""
    return media.ref if isinstance(media.ref, bytes) else Path(media.ref)


@contextmanager
def _naming(media: Media) -> Iterator[None]:
    """Says which medium an error is about, so that no modality has to.

    What Python's readers raise for a broken file is the row's failure, not the run's; anything else is a bug.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{media}: {error}") from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{media}: {type(error).__name__}: {error}; mend the file, or leave its row out") from error
