"""Finds how many tokens a medium takes, and loads it: the data side of a model's towers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from torch import Tensor

from mmsft.adapters.spec import Adapter, Layout, layout_of, slots_of
from mmsft.data.members import member
from mmsft.data.remote import link
from mmsft.errors import DataError
from mmsft.features import FeatureStore
from mmsft.modalities.spec import File, Modality
from mmsft.types import Grid, Media


@dataclass(frozen=True, slots=True)
class Kept:
    """A medium of a tower that has a store.

    Attributes:
        digest: its key there.
        features: [L, width] what the encoder gave; None = it isn't there.
        tensors: what `Modality.load` gave; empty if the features are there.
    """

    digest: str
    features: Tensor | None
    tensors: Mapping[str, Tensor]


Loaded: TypeAlias = Mapping[Media, Mapping[str, Tensor] | Kept]
"""Media as `MediaReader.read` gives them; those of one tower are all `Kept`, or none is."""


class Reading(NamedTuple):
    """A medium with the options to read it with, and the tokens that it takes then."""

    media: Media
    tokens: int


@dataclass(frozen=True, slots=True)
class MediaReader:
    """The modality and adapter specs of a model, by tower; picklable, so that data workers hold one.

    Attributes:
        blank: read every medium as one without content, to see what a model answers without looking.
        stores: features of frozen encoders, by tower; one that isn't there encodes at each use.
    """

    towers: Mapping[str, tuple[Modality, Adapter]]
    blank: bool = False
    stores: Mapping[str, FeatureStore] = field(default_factory=dict)

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

    @property
    def contexts(self) -> Mapping[str, Callable[[str], tuple[int, ...]]]:
        """What adapters read of what is asked about a medium, by tower, of those that read it."""
        return {name: adapter.context for name, (_, adapter) in self.towers.items() if adapter.reads_context}

    def grid(self, media: Media) -> Grid:
        """Returns the features that the medium gives, from its header."""
        modality = self.modality(media)
        with _naming(media):
            return modality.probe(file_of(media), dict(media.options))

    def layout(self, media: Media) -> Layout:
        """Returns what the medium occupies among the tokens."""
        grid = self.grid(media)
        with _naming(media):
            return layout_of(self.towers[media.modality][1], grid)

    def readings(self, media: Media) -> tuple[Reading, ...]:
        """Returns how the medium can be read: as it is, then to fewer and fewer tokens, as far as its modality goes."""
        modality = self.modality(media)
        with _naming(media):
            ways = modality.smaller(file_of(media), dict(media.options))
        found = [Reading(media, slots_of(self.layout(media)))]
        for way in ways:
            smaller = replace(media, options=tuple(sorted(way.items())))
            tokens = slots_of(self.layout(smaller))
            if tokens < found[-1].tokens:  # an adapter may make as many of fewer features
                found.append(Reading(smaller, tokens))
        return tuple(found)

    def read(self, media: Media) -> Mapping[str, Tensor] | Kept:
        """Returns a medium's features if its tower has a store that has them; else reads and decodes it."""
        store = self.stores.get(media.modality)
        if store is None:
            return self.load(media)
        with _naming(media):
            digest = store.digest(file_of(media), dict(media.options))
        features = store.get(digest, self.grid(media).whole.count)
        return Kept(digest, features, self.load(media) if features is None else {})

    def load(self, media: Media) -> dict[str, Tensor]:
        """Reads and decodes the medium."""
        modality = self.modality(media)
        if self.blank:
            return modality.blank(self.grid(media).whole)
        with _naming(media):
            return modality.load(file_of(media), dict(media.options))


def file_of(media: Media) -> File:
    """Returns where the medium lies, or its bytes.

    Raises:
        DataError: it lies in a tar that can't be read, or on the network, and can't be fetched.
    """
    if isinstance(media.ref, bytes):
        return media.ref
    packed, far = member(media.ref), link(media.ref)
    if far is not None:
        return far.fetch()
    return Path(media.ref) if packed is None else packed.read()


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
