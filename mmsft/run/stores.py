"""Lets a stage's towers use the store of features."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from mmsft import assets
from mmsft.config import StoreConfig
from mmsft.data.encoding import Encoding
from mmsft.errors import DataError
from mmsft.features import FeatureStore, Keeper, identity
from mmsft.model.fusion import MultimodalModel
from mmsft.model.tower import Tower
from mmsft.parallel import Ranks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stores:
    """What a stage's towers have in store.

    Attributes:
        keepers: by tower, of those that use the store.
        encoding: the stage's, with workers that read the store.
    """

    keepers: dict[str, Keeper]
    encoding: Encoding

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns for each tower how many media were ``read`` from the store, and how many ``encoded``."""
        return {name: {"read": keeper.read, "encoded": keeper.encoded} for name, keeper in self.keepers.items()}


def root(config: StoreConfig, kind: Literal["features", "tokens"]) -> Path:
    """Returns the folder of all stores of a kind."""
    return assets.resolve(config.folder) if config.folder else assets.cache_dir() / kind


def not_stored(tower: Tower) -> str | None:
    """Tells why a tower's features can't be stored, as its parameters learn now; None = they can."""
    if any(parameter.requires_grad for parameter in tower.encoder.parameters()):
        return "its encoder learns"
    if tower.modality.augments():
        return "its media are read differently each time"
    return None


def told(config: StoreConfig | None, tower: nn.Module) -> str:
    """Returns in words where a tower's features come from, as its parameters learn now."""
    assert isinstance(tower, Tower)
    why = "features: null" if config is None else not_stored(tower)
    if config is None or why:
        return f"encoded at each use: {why}"
    return "encoded once, then from the store of features"


@contextmanager
def stored(config: StoreConfig | None, model: MultimodalModel, encoding: Encoding, ranks: Ranks) -> Iterator[Stores]:
    """Opens the store for each tower whose encoder is frozen; what is written is on disk at the end.

    Args:
        config: None = no store is used.
        model: on its device, with what learns asking for gradients.
        encoding: of the stage.
        ranks: this process's device and precision.
    """
    keepers: dict[str, Keeper] = {}
    towers: dict[str, Tower] = {}
    for name, tower in model.towers.items():
        assert isinstance(tower, Tower)
        if config is None or not_stored(tower):
            continue
        try:
            found = identity(tower.modality, tower.encoder, f"{ranks.precision} on {ranks.device.type}")
        except DataError as error:
            log.warning("feature store: the %s tower doesn't use it: %s", name, error)
            continue
        towers[name] = tower
        store = FeatureStore.of(root(config, "features"), found)
        keepers[name] = tower.keeper = Keeper(store, found, int(config.limit))
    try:
        stores = {name: keeper.store for name, keeper in keepers.items()}
        yield Stores(keepers, replace(encoding, reader=replace(encoding.reader, stores=stores)))
    finally:
        for name, keeper in keepers.items():
            keeper.close()
            towers[name].keeper = None
