"""From rows to micro-batches: rows that stand together become trees, trees become packs of like size."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import NamedTuple
from zlib import crc32

import numpy as np
from torch import Tensor

from mmsft.data import quarantine, tree
from mmsft.data.chat import ChatEncoder
from mmsft.data.collate import collate, pack
from mmsft.data.ledger import Entry, Fate
from mmsft.data.media_reader import Kept, Loaded, MediaReader
from mmsft.data.mixture import Mixture
from mmsft.data.pack import bins, cut, deal, filled, padded
from mmsft.data.prefix import prefixes
from mmsft.data.seq2seq import by_prompt, shape
from mmsft.data.token_store import TokenStore, encoded_of, entry_of
from mmsft.errors import DataError, LeftOut
from mmsft.types import Batch, Conversation, Encoded, Ints, Media


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of each global step a process takes."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A row's threads in a part of a step.

    Attributes:
        row: its number in the step.
        threads: those of its threads that are in this part.
        first: whether the row's first thread is here, so that the row is counted here.
    """

    row: int
    threads: tuple[Encoded, ...]
    first: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """What goes through the model together in any case: a tree, or a thread by itself.

    Attributes:
        members: the rows in it.
        tree: their threads, joined.
    """

    members: tuple[Member, ...]
    tree: Encoded


class Read(NamedTuple):
    """Rows that were read and encoded, by number, with their media; and those that can't be learned from."""

    rows: dict[int, Encoded]
    loaded: Loaded
    lost: list[Entry]


@dataclass
class Work:
    """A process's share of some rows, ready for the model.

    Attributes:
        micro: micro-batches.
        learned: how many rows are learned from, by source and fate.
        entries: lines for the ledger: rows that can't be, and how rows are used otherwise than one would think.
        tokens: that the model reads, padding not counted.
        spared: tokens that it needn't read, since rows share them.
        division: checksum of how all of the rows are divided; that of each process must be the same.
    """

    micro: list[Batch] = field(default_factory=list)
    learned: Counter[tuple[int, Fate]] = field(default_factory=Counter)
    entries: list[Entry] = field(default_factory=list)
    tokens: int = 0
    spared: int = 0
    division: int = 0

    @property
    def used(self) -> int:
        """Rows that are learned from."""
        return self.learned.total()

    def add(self, batch: Batch, members: Sequence[Member], rows: Mapping[int, Encoded]) -> None:
        """Adds a micro-batch, made of these of the rows."""
        read = int(batch.mask.sum()) + (int(batch.prompts.mask.sum()) if batch.prompts else 0)
        self.micro.append(batch)
        counted = (rows[member.row] for member in members if member.first)
        self.learned.update((row.source, fate_of(row)) for row in counted)
        self.tokens += read
        self.spared += sum(len(thread) for member in members for thread in member.threads) - read


@dataclass(frozen=True)
class Encoding:
    """How rows become batches: picklable, so that data workers hold one.

    Attributes:
        encoder: from conversations to tokens.
        reader: of media.
        micro_tokens: most tokens of a micro-batch, padding included; no thread is longer.
        packs: the model takes trees; else their threads are padded. An encoder–decoder's prompts are padded, each once.
        tokens: where rows are kept once they are tokenised; None = nowhere.
        known: rows (source, row) that a quarantine names: they are lost without being read.
    """

    encoder: ChatEncoder
    reader: MediaReader
    micro_tokens: int
    packs: bool = True
    tokens: TokenStore | None = None
    known: Mapping[tuple[int, int], Entry] = field(default_factory=dict, repr=False)

    @cached_property
    def reads(self) -> str:
        """What decides how rows become tokens, hashed: see `quarantine.reads`."""
        return quarantine.reads(self.encoder, self.reader)

    def row(self, mixture: Mixture, pair: Ints) -> Encoded:
        """Reads and encodes the row (source, row); media are probed, not loaded.

        Raises:
            DataError: the row can't be learned from.
        """
        if known := self._known(pair):
            raise DataError(known.reason)
        return self.encoder.encode(mixture.conversation(pair), source=int(pair[0]))

    def rows(self, mixture: Mixture, pairs: Ints) -> list[Encoded | Entry]:
        """Reads and encodes rows [n, 2]; those that are in store needn't be encoded."""
        keys = {} if self.tokens is None else _keys(mixture, pairs)
        fates: dict[int, Encoded | Entry] = {**self._stored(mixture, pairs, keys)}
        read: dict[int, Conversation] = {}
        for number, pair in enumerate(pairs):
            if known := self._known(pair):
                fates[number] = known
            if number in fates:
                continue
            try:
                read[number] = mixture.conversation(pair)
            except DataError as error:
                fates[number] = self._lost(mixture, pair, error)
        encoded = self.encoder.encode_all(list(read.values()), [int(pairs[number][0]) for number in read])
        for number, row in zip(read, encoded, strict=True):
            fates[number] = row if isinstance(row, Encoded) else self._lost(mixture, pairs[number], row)
        if self.tokens is not None:
            new = ((keys[number], fates[number]) for number in read if number in keys)
            made = {key: entry_of(row, self.encoder) for key, row in new if isinstance(row, Encoded)}
            self.tokens.put({key: entry for key, entry in made.items() if entry is not None})
        return [fates[number] for number in range(len(pairs))]

    def read(self, mixture: Mixture, pairs: Ints) -> Read:
        """Reads and encodes rows [n, 2], and loads their media."""
        found = self.rows(mixture, pairs)
        encoded = {number: row for number, row in enumerate(found) if isinstance(row, Encoded)}
        loaded, failed = self._load(encoded, encoded, mixture, pairs)
        fates = [failed.get(number, row) for number, row in enumerate(found)]
        kept = {number: row for number, row in enumerate(fates) if isinstance(row, Encoded)}
        return Read(kept, loaded, [row for row in fates if isinstance(row, Entry)])

    def work(
        self, mixture: Mixture, pairs: Ints, together: Sequence[int], share: Share, told: int | None = None
    ) -> Work:
        """Reads some rows, divides them among the processes, and makes batches of this one's share.

        Which rows it takes depends on all of their lengths, so that every process encodes the text of all of them;
        media are loaded by the process that needs them.

        Args:
            mixture: the rows.
            pairs: [n, 2] (source, row).
            together: [n] equal for neighbours that are to be joined.
            share: this process's.
            told: how many of the rows are seen for the first time: how they are used goes to the ledger; None = all.
        """
        work = Work()
        encoded: dict[int, Encoded] = {}
        for number, row in enumerate(self.rows(mixture, pairs)):
            if isinstance(row, Encoded):
                encoded[number] = row
            elif number % share.ranks == share.rank:
                work.entries.append(row)
        parts = self._parts(encoded, together, share.ranks)
        dealt = self._dealt(parts, share.ranks)
        work.division = _checksum(pairs, parts, dealt)
        mine = [[parts[index] for index in some] for some in dealt[share.rank]]
        members = [member for some in mine for part in some for member in part.members]
        loaded, failed = self._load(encoded, dict.fromkeys(member.row for member in members), mixture, pairs)
        for member in members:
            if member.first and member.row in failed:
                work.entries.append(failed[member.row])
            elif member.first and (told is None or member.row < told):
                work.entries += self.noted(mixture, pairs[member.row], encoded[member.row])
        for some in mine:
            kept = [left for part in some if (left := self._without(part, failed))]
            if kept:
                work.add(self._batch(kept, loaded), [member for part in kept for member in part.members], encoded)
        return work

    def noted(self, mixture: Mixture, pair: Ints, row: Encoded) -> list[Entry]:
        """Returns what the ledger is to say of how a row is used, if anything."""
        if not row.note:
            return []
        source, index = mixture.sources[int(pair[0])].name, int(pair[1])
        return [Entry(mixture.row_id(pair), fate_of(row), row.note, source, index)]

    def batches(self, rows: Sequence[Encoded], loaded: Loaded) -> Iterator[Batch]:
        """Yields micro-batches of rows or joined rows."""
        parts = self._parts(dict(enumerate(rows)), range(len(rows)), 1)
        for some in self._dealt(parts, 1)[0]:
            if some:
                yield self._batch([parts[index] for index in some], loaded)

    def joined(self, rows: Sequence[Encoded], together: Sequence[int]) -> list[Encoded]:
        """Returns the trees that rows make, neighbours with one number joined."""
        return [part.tree for part in self._parts(dict(enumerate(rows)), together, 1)]

    def _stored(self, mixture: Mixture, pairs: Ints, keys: Mapping[int, bytes]) -> dict[int, Encoded]:
        """Returns those of the rows [n, 2] that are in store, by number."""
        entries = self.tokens.get(keys.values()) if self.tokens else {}
        found = {}
        for number, key in keys.items():
            if key in entries:
                pair = pairs[number]
                row = encoded_of(entries[key], mixture.row_id(pair), int(pair[0]), self.encoder)
                if row is not None:
                    found[number] = row
        return found

    def _known(self, pair: Ints) -> Entry | None:
        return self.known.get((int(pair[0]), int(pair[1]))) if self.known else None

    def _lost(self, mixture: Mixture, pair: Ints, error: DataError) -> Entry:
        """Books a row that can't be learned from, with what a quarantine knows it by."""
        source, index = mixture.sources[int(pair[0])], int(pair[1])
        mark = quarantine.mark(source, index, self.reads)
        return replace(lost(mixture.row_id(pair), error), source=source.name, index=index, mark=mark)

    @property
    def _pads(self) -> bool:
        return not self.packs or self.encoder.sides is not None

    def _dealt(self, parts: Sequence[Part], ranks: int) -> list[list[list[int]]]:
        """Returns which parts are in each of each process's micro-batches; one may be empty."""
        if self._pads:
            shapes = [shape(part.tree) for part in parts]
            found = cut(shapes, self.micro_tokens, ranks)
            costs = [padded(shapes[index] for index in some).size for some in found]
        else:
            sizes = [len(part.tree) for part in parts]
            begins = prefixes([part.tree for part in parts])
            found = bins(sizes, self.micro_tokens, ranks, begins)
            costs = [filled(some, sizes, begins) for some in found]
        return [[found[place] for place in places] for places in deal(costs, ranks)]

    def _batch(self, parts: Sequence[Part], loaded: Loaded) -> Batch:
        trees = [part.tree for part in parts]
        return collate(trees, self.reader, loaded) if self._pads else pack(trees, self.reader, loaded)

    def _parts(self, rows: Mapping[int, Encoded], together: Sequence[int], ranks: int) -> list[Part]:
        groups = [
            [Member(number, tuple(tree.threads(rows[number]))) for number in group]
            for _, group in groupby(rows, key=lambda number: together[number])
        ]
        if self.encoder.sides:
            prompts = [part for group in groups for part in self._prompts(group, self.micro_tokens)]
            sizes = [shape(part.tree).size for part in prompts]
            most = self._fair(sizes, ranks)
            if max(sizes, default=0) > most:
                prompts = [part for group in groups for part in self._prompts(group, most)]
            return prompts
        if not self.packs:
            members = [member for group in groups for member in group]
            return [Part((alone,), alone.threads[0]) for member in members for alone in _alone(member)]
        trees = [self._part(group) for group in groups]
        most = self._fair([len(part.tree) for part in trees], ranks)
        return [piece for part in trees for piece in ([part] if len(part.tree) <= most else self._divided(part, most))]

    def _fair(self, sizes: Sequence[int], ranks: int) -> int:
        """Returns how large a part may be: none is idle while another process has a larger one than its fair share."""
        return min(self.micro_tokens, -(-sum(sizes) // ranks))

    def _prompts(self, members: Sequence[Member], most: int) -> Iterator[Part]:
        """Joins replies to one prompt; if they are too many for a part, it is read again for the others."""
        alone = [thread for member in members for thread in _alone(member)]
        for some in by_prompt([member.threads[0] for member in alone], most):
            yield self._part([alone[index] for index in some])

    def _divided(self, part: Part, most: int) -> Iterator[Part]:
        """Divides a tree between its rows, and a row that is too long by itself between its threads."""
        run: list[Member] = []
        size = 0
        for member in part.members:
            row = tree.join(member.threads)
            new = len(row) - (tree.shared(run[-1].threads[0], member.threads[0]) if run else 0)
            if run and size + new > most:
                yield self._part(run)
                run, size, new = [], 0, len(row)
            if len(row) > most:
                for index, threads in enumerate(tree.divide(row, most)):
                    yield self._part([Member(member.row, tuple(threads), first=index == 0)])
                continue
            run.append(member)
            size += new
        if run:
            yield self._part(run)

    def _part(self, members: Sequence[Member]) -> Part:
        threads = [thread for member in members for thread in member.threads]
        return Part(tuple(members), tree.join(threads))

    def _without(self, part: Part, failed: Mapping[int, Entry]) -> Part | None:
        left = [member for member in part.members if member.row not in failed]
        if len(left) == len(part.members):
            return part
        return self._part(left) if left else None

    def _load(
        self, rows: Mapping[int, Encoded], wanted: Iterable[int], mixture: Mixture, pairs: Ints
    ) -> tuple[Loaded, dict[int, Entry]]:
        """Loads all media of the wanted rows, each once; tells which rows have one that can't be loaded."""
        loaded: dict[Media, Mapping[str, Tensor] | Kept] = {}
        broken: dict[Media, DataError] = {}
        failed: dict[int, Entry] = {}
        for number in wanted:
            for placed in rows[number].media:
                medium = placed.media
                if medium not in loaded and medium not in broken:
                    try:
                        loaded[medium] = self.reader.read(medium)
                    except DataError as error:
                        broken[medium] = error
                if medium in broken:
                    failed[number] = self._lost(mixture, pairs[number], broken[medium])
                    break
        return loaded, failed


def _keys(mixture: Mixture, pairs: Ints) -> dict[int, bytes]:
    """Returns the keys under which rows [n, 2] are stored, by number, of those that can be."""
    keys = {}
    for number, pair in enumerate(pairs):
        with suppress(DataError):  # told when the row is read
            key = mixture.key(pair)
            if key is not None:
                keys[number] = key
    return keys


def _alone(member: Member) -> Iterator[Member]:
    """Yields a row's threads one by one."""
    for index, thread in enumerate(member.threads):
        yield Member(member.row, (thread,), first=member.first and index == 0)


def _checksum(pairs: Ints, parts: Sequence[Part], dealt: Sequence[Sequence[Sequence[int]]]) -> int:
    """Returns 32 bits that stand for which rows were divided, into what, and who takes which."""
    found = crc32(repr(dealt).encode(), crc32(pairs.tobytes()))
    for part in parts:
        members = np.array([(member.row, len(member.threads)) for member in part.members])
        found = crc32(part.tree.input_ids.tobytes(), crc32(members.tobytes(), found))
    return found


def fate_of(row: Encoded) -> Fate:
    """Returns the fate of a row that is learned from."""
    return "trimmed" if row.trimmed else "used"


def lost(row: str, error: DataError) -> Entry:
    """Books a row that can't be learned from; modalities and templates don't know whose row they fail on."""
    fate: Fate = "dropped" if isinstance(error, LeftOut) else "failed"
    reason = str(error)
    return Entry(row, fate, reason if row in reason else f"{row}: {reason}")
