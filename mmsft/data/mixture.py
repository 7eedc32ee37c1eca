"""A recipe opened: the rows of all its sources, which are trained on, how often, and which are held out."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmsft.config import RecipeConfig, ValidationConfig
from mmsft.config.values import source_name
from mmsft.data.mix import Item, draws, whole
from mmsft.data.near import Near
from mmsft.data.order import Numbers, Order, permutation
from mmsft.data.shared import beginning, group, key
from mmsft.data.source import Source, open_source, shown_by
from mmsft.data.split import Drawn, draw
from mmsft.data.streams import shards_of, spread
from mmsft.errors import ConfigError, DataError, Problems
from mmsft.types import Conversation, Ints

log = logging.getLogger(__name__)

_MEASURED = 500
"""Rows of a source from which its mean length is told."""


@dataclass(frozen=True)
class Measures:
    """What a recipe's mixture may ask of the tokenizer, which is loaded when it does.

    Attributes:
        count: returns what counts a text's tokens.
        length: tokens of a conversation.
    """

    count: Callable[[], Callable[[str], int]]
    length: Callable[[Conversation], int]


@dataclass
class _Leaf:
    """A source of the recipe or of one nested in it.

    Attributes:
        number: of the source.
        rows: [n] of it that are trained on.
    """

    number: int
    rows: Ints


@dataclass
class _Node:
    """A recipe with its items, opened; so is one nested in it.

    Attributes:
        recipe: the settings.
        items: its sources, in order.
        held_out: [m, 2] (source, row).
    """

    recipe: RecipeConfig
    items: "list[_Leaf | _Node]"
    held_out: Ints

    def leaves(self) -> "Iterator[_Leaf]":
        """Yields all sources, also those of nested recipes."""
        for item in self.items:
            yield from item.leaves() if isinstance(item, _Node) else [item]


class Mixture:
    """The rows of a recipe.

    Opening one finds the rows' places. Only a few settings need more, and read every row once: `where` looks at
    columns, a validation `fraction` at the media, since rows of one picture stay together, and `join` at what rows
    begin with. Weights in tokens read a few hundred rows of each source.

    Attributes:
        sources: the sources, those of validation files last.
        train: [n, 2] (source, row) of what is trained on, in the order of the sources.
        held_out: [m, 2] likewise of what is held out, shuffled, so that its first rows are a sample of all.
        groups: [n] the same number for rows of `train` that stay together since they begin alike; None = none do.
        epoch: rows in an epoch.
    """

    def __init__(self, recipe: RecipeConfig, measures: Measures) -> None:
        """Opens the sources.

        Args:
            recipe: the settings.
            measures: what the tokenizer tells.

        Raises:
            MmsftError: a source, format or filter that selects nothing; of several sources, each that fails.
        """
        opened: list[Source] = []
        problems = Problems()
        root = self._open(recipe, measures, opened, problems, "")
        problems.tell()
        self.sources = tuple(opened)
        self._refuse_reading_shards(root)
        self._split(root)
        leaves = list(root.leaves())
        self.train: Ints = np.concatenate([_pairs(leaf) for leaf in leaves])
        self._joined_at_most = recipe.joined_at_most if recipe.join else None
        self.groups: Numbers | None = self.together(self.train)
        shares = self._shares(root, measures)
        self._counts: Ints = whole(shares, [self.sources[leaf.number].name for leaf in leaves])
        self._sizes: Ints = np.array([len(leaf.rows) for leaf in leaves], np.int64)
        self._sequential = recipe.mix.order == "sequential"
        self._shards = self._in_shards(leaves)
        self.epoch = int(self._counts.sum())
        seed = recipe.validation.seed if recipe.validation else 0
        self.held_out: Ints = root.held_out[permutation(seed, 0, len(root.held_out))]

    def order(self, seed: int) -> Order:
        """Returns the order in which the rows are trained on."""
        return Order(seed, self._sizes, self._counts, self.groups, self._sequential, self._shards)

    def together(self, pairs: Ints) -> Numbers | None:
        """Returns a number for each of the rows [n, 2], the same for those that begin alike; None = none are joined."""
        if self._joined_at_most is None:
            return None
        return group(np.fromiter(map(self._beginning, pairs), np.uint64, len(pairs)), self._joined_at_most)

    def conversation(self, pair: Ints) -> Conversation:
        """Reads the row (source, row)."""
        return self.sources[int(pair[0])].conversation(int(pair[1]))

    def key(self, pair: Ints) -> bytes | None:
        """Returns a key of all that decides what the row (source, row) says, as `Source.key`."""
        return self.sources[int(pair[0])].key(int(pair[1]))

    def row_id(self, pair: Ints) -> str:
        """Returns the id of the row (source, row), also of one that can't be read."""
        return self.sources[int(pair[0])].rows.row_id(int(pair[1]))

    def only(self, pairs: Ints, sources: Sequence[Source]) -> "Mixture":
        """Returns a mixture with these of its rows [n, 2] alone to train on, each once in an epoch.

        Args:
            pairs: (source, row).
            sources: in the place of its own.
        """
        some = copy.copy(self)
        some.train, some.sources = pairs, tuple(sources)
        some._sizes = some._counts = np.array([len(pairs)], np.int64)
        some._shards = None
        some.epoch = len(pairs)
        if self.groups is not None:
            group_of = dict(zip(map(tuple, self.train.tolist()), self.groups.tolist(), strict=True))
            groups = [group_of[tuple(pair)] for pair in pairs.tolist()]
            some.groups = np.unique(groups, return_inverse=True)[1]
        return some

    def drawn(self) -> list[tuple[Source, int, int]]:
        """Returns each source that is trained on, how many rows of it there are, and how many an epoch has."""
        first = np.concatenate([[0], np.cumsum(self._sizes)])[:-1]
        numbers = [int(self.train[at, 0]) if size else 0 for at, size in zip(first, self._sizes, strict=True)]
        found = zip(numbers, self._sizes.tolist(), self._counts.tolist(), strict=True)
        return [(self.sources[number], size, count) for number, size, count in found if size]

    def _open(
        self, recipe: RecipeConfig, measures: Measures, opened: list[Source], problems: Problems, above: str
    ) -> _Node:
        items: list[_Leaf | _Node] = []
        for config in recipe.sources:
            name = above + str(source_name(config))
            if config.recipe is not None:
                with problems.collect():
                    _refuse_other_writing(config.recipe, recipe, name)
                items.append(self._open(config.recipe, measures, opened, problems, f"{name}/"))
                continue
            with problems.collect():
                opened.append(open_source(config, name, measures.count))
                items.append(_Leaf(len(opened) - 1, opened[-1].picked()))
        held = np.zeros((0, 2), np.int64)
        if recipe.validation and recipe.validation.file:
            with problems.collect():
                opened.append(open_source(recipe.validation.file, f"{above}validation", measures.count))
                held = _pairs(_Leaf(len(opened) - 1, opened[-1].picked()))
        return _Node(recipe, items, held)

    def _in_shards(self, leaves: Sequence[_Leaf]) -> tuple[Numbers | None, ...] | None:
        """Returns for each source the shard of each of its rows, None if it is in none; None if no source is."""
        found = [shards_of(self.sources[leaf.number].rows, leaf.rows) for leaf in leaves]
        return tuple(found) if any(some is not None for some in found) else None

    def _refuse_reading_shards(self, node: _Node) -> None:
        """Refuses what would fetch all shards before the first step."""
        sources = [(self.sources[leaf.number], leaf.rows[:1]) for leaf in node.leaves()]
        shards = [source.name for source, some in sources if shards_of(source.rows, some) is not None]
        split = node.recipe.validation
        for setting, given in (("join", node.recipe.join), ("validation.fraction", split and split.fraction)):
            if given and shards:
                raise ConfigError(
                    f"source {shards[0]!r}: `{setting}` reads each row before the first step, and shards are fetched "
                    "when it is their turn; hold out a `file` or a `source`, leave `join` out, or download the shards"
                )
        for item in node.items:
            if isinstance(item, _Node):
                self._refuse_reading_shards(item)

    def _split(self, node: _Node) -> None:
        """Takes what a recipe holds out from what it trains on; nested recipes first."""
        for item in node.items:
            if isinstance(item, _Node):
                self._split(item)
                node.held_out = np.concatenate([node.held_out, item.held_out])
        split = node.recipe.validation
        if split and split.source:
            item = node.items[node.recipe.source_names.index(split.source)]
            for leaf in item.leaves() if isinstance(item, _Node) else [item]:
                node.held_out = np.concatenate([node.held_out, _pairs(leaf)])
                leaf.rows = leaf.rows[:0]
        if split and split.fraction:
            self._draw(node, split, split.fraction)

    def _draw(self, node: _Node, split: ValidationConfig, fraction: float) -> None:
        leaves = list(node.leaves())
        train = np.concatenate([_pairs(leaf) for leaf in leaves])
        near = Near(split.near) if split.near else None
        drawn = draw((self._shown(pair, near) for pair in train), split.seed, fraction)
        _refuse_lopsided(drawn, fraction)
        node.held_out = np.concatenate([node.held_out, train[drawn.held_out]])
        parts = np.split(~drawn.held_out, np.cumsum([len(leaf.rows) for leaf in leaves])[:-1])
        for leaf, kept in zip(leaves, parts, strict=True):
            leaf.rows = leaf.rows[kept]

    def _shares(self, node: _Node, measures: Measures) -> list[float]:
        """Returns how many rows of each source an epoch has, before they are made whole."""
        items = []
        for config, opened in zip(node.recipe.sources, node.items, strict=True):
            inside = self._shares(opened, measures) if isinstance(opened, _Node) else [float(len(opened.rows))]
            lengths = [0.0] * len(inside)
            if node.recipe.mix.unit == "tokens":
                leaves = opened.leaves() if isinstance(opened, _Node) else [opened]
                lengths = [self._mean_length(leaf, measures) for leaf in leaves]
            items.append(Item(config, inside, lengths))
        return draws(node.recipe.mix, items)

    def _mean_length(self, leaf: _Leaf, measures: Measures) -> float:
        """Returns the mean number of tokens of a source's rows, from a sample; rows that can't be used have none."""
        some = spread(self.sources[leaf.number].rows, leaf.rows, _MEASURED)
        lengths: list[int] = []
        why = ""
        for row in some:
            try:
                lengths.append(measures.length(self.sources[leaf.number].conversation(int(row))))
            except DataError as error:
                why = str(error)
        if len(leaf.rows) and not lengths:
            raise DataError(
                f"source {self.sources[leaf.number].name!r}: none of {len(some)} rows can be measured for weights in "
                f"tokens; the last one: {why}"
            )
        return float(np.mean(lengths)) if lengths else 0.0

    def _beginning(self, pair: Ints) -> int:
        """Returns a key of what rows of one source can share with the row; one that can't be read is by itself."""
        source, row = int(pair[0]), int(pair[1])
        try:
            return key((source, beginning(self.sources[source].written(row))))
        except DataError:
            return key((source, row))

    def _shown(self, pair: Ints, near: Near | None) -> list[bytes]:
        """Returns what a row shows: its media as it writes them, wherever they lie, or itself; and what is near it."""
        source, row = self.sources[int(pair[0])], int(pair[1])
        try:
            shown = [shown_by(medium.ref) for medium in source.media(row)] or [shown_by(self.row_id(pair))]
            if near is not None:
                shown += near.keys(" ".join(turn.text for turn in source.written(row).turns))
        except DataError:
            return []
        return shown


def _pairs(leaf: _Leaf) -> Ints:
    """Returns a source's rows as [n, 2] (source, row)."""
    return np.stack([np.full(len(leaf.rows), leaf.number, np.int64), leaf.rows], 1)


def _refuse_other_writing(inner: RecipeConfig, outer: RecipeConfig, name: str) -> None:
    """Refuses a nested recipe that writes or learns otherwise than the one around it: it would be read wrongly."""
    stated = inner.model_fields_set & {"template", "learn", "template_kwargs"}
    differ = sorted(it for it in stated if getattr(inner, it) != getattr(outer, it))
    if differ:
        told = ", ".join(f"{it}: {getattr(inner, it)} (not {getattr(outer, it)})" for it in differ)
        raise ConfigError(
            f"source {name!r}: its recipe states {told}; one recipe writes and learns all rows alike: state the same "
            "in both, or train on it in a stage of its own"
        )
    if inner.mix.order != "shuffled":
        raise ConfigError(
            f"source {name!r}: its recipe has `order: {inner.mix.order}`, and the recipe around it shuffles all rows "
            "or puts one source behind the other; state the order there"
        )


def _refuse_lopsided(drawn: Drawn, fraction: float) -> None:
    """Refuses a split without one of its sides, and warns of one that is far from what was asked for."""
    rows, held = len(drawn.held_out), int(drawn.held_out.sum())
    connected = ""
    if drawn.largest > 1:
        connected = (
            f"; rows with a picture in common stay together, and {drawn.largest} of them are connected so: where that "
            "leaves no choice, hold out a `file` or a `source`"
        )
    if not 0 < held < rows:
        raise ConfigError(f"validation.fraction {fraction:g} holds out {held} of {rows} rows; take another{connected}")
    # Of fewer rows chance alone would explain it.
    if max(held, fraction * rows) > 100 and not 0.5 < held / (fraction * rows) < 2:
        log.warning("validation.fraction %g holds out %d of %d rows%s", fraction, held, rows, connected)
