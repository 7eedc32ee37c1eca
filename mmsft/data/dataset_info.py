"""Data sets as LLaMA-Factory's ``dataset_info.json`` describes them: where their rows are, and how they are read."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError

from mmsft.config.strict import Strict
from mmsft.config.values import Name
from mmsft.config.wording import wrong
from mmsft.data.entry_format import SPEAKERS, EntryFormat
from mmsft.data.files import check_sum
from mmsft.data.hub import files_of, place
from mmsft.data.order import permutation
from mmsft.data.rows import Rows, SomeRows
from mmsft.data.sources import open_files, open_rows
from mmsft.errors import ConfigError, DataError, suggest

_ELSEWHERE: Final = {
    "ms_hub_url": "it is on ModelScope, which isn't asked: fetch it, and name its file as file_name",
    "om_hub_url": "it is on Modelers, which isn't asked: fetch it, and name its file as file_name",
    "script_url": "no code of data sets is run: write its rows into a file, and name that as file_name",
    "cloud_file_name": "it isn't fetched from there: fetch it, and name it as file_name",
}
"""Where LLaMA-Factory looks before file_name, and what to do instead."""
_ASKS: Final = ("prompt", "query", "response", "history")
_PAIR: Final = ("chosen", "rejected")


class Columns(Strict):
    """Which column holds what; where any is named, what isn't named isn't read."""

    prompt: Name | None = None
    query: Name | None = None
    response: Name | None = None
    history: Name | None = None
    messages: Name | None = None
    system: Name | None = None
    tools: Name | None = None
    images: Name | None = None
    videos: Name | None = None
    audios: Name | None = None
    chosen: Name | None = None
    rejected: Name | None = None
    kto_tag: Name | None = None


class Tags(Strict):
    """What turns call their speaker and their text, and who speaks; where any is named, the others aren't known."""

    role_tag: Name | None = None
    content_tag: Name | None = None
    user_tag: Name | None = None
    assistant_tag: Name | None = None
    observation_tag: Name | None = None
    function_tag: Name | None = None
    system_tag: Name | None = None


_ALPACA: Final = Columns(prompt="instruction", query="input", response="output")
_SHAREGPT: Final = Columns(messages="conversations")
_TAGS: Final = Tags(
    role_tag="from",
    content_tag="value",
    user_tag="human",
    assistant_tag="gpt",
    observation_tag="observation",
    function_tag="function_call",
    system_tag="system",
)


class Description(Strict):
    """An entry of the file, as it is written."""

    file_name: Name | None = None
    file_sha1: Name | None = None
    hf_hub_url: Name | None = None
    ms_hub_url: Name | None = None
    om_hub_url: Name | None = None
    script_url: Name | None = None
    cloud_file_name: Name | None = None
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    ranking: bool = False
    subset: Name | None = None
    split: Name | None = None
    folder: Name | None = None
    num_samples: int | None = Field(default=None, ge=1)
    columns: Columns | None = None
    tags: Tags | None = None

    @property
    def talks(self) -> bool:
        """Whether rows are lists of turns."""
        return self.formatting != "alpaca"

    @property
    def named(self) -> dict[str, str]:
        """The columns that are read, by what they hold."""
        columns = self.columns or (_SHAREGPT if self.talks else _ALPACA)
        return columns.model_dump(exclude_none=True)

    @property
    def spoken(self) -> dict[str, str]:
        """Keys and speakers of its turns."""
        return (self.tags or _TAGS).model_dump(exclude_none=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set that is described.

    Attributes:
        where: file and name, for errors.
        folder: of the file, as a recipe writes paths; empty = the working directory.
        root: that folder, where its media lie as LLaMA-Factory has it.
        said: what the entry says.
    """

    where: str
    folder: str
    root: Path
    said: Description

    @property
    def read(self) -> EntryFormat:
        """The data format of its rows."""
        return EntryFormat(self.said.named, self.said.spoken if self.said.talks else None, self.said.ranking)

    def open(self) -> Rows:
        """Opens the rows: of ``num_samples`` so many, the same each time.

        Raises:
            ConfigError: no such file or data set, another file than ``file_sha1`` says, fewer rows than samples, or a
                column that no row has.
            DataError: a file can't be read.
        """
        rows = self._rows()
        if self.said.columns is not None:
            self._check_columns(rows)
        count = self.said.num_samples
        if count is None:
            return rows
        if count > len(rows):
            raise ConfigError(
                f"{self.where}: num_samples: {count} of {len(rows)} rows; leave it out, and let the recipe's source "
                "`repeat` them"
            )
        return SomeRows(rows, np.sort(permutation(0, 0, len(rows))[:count]))

    def _rows(self) -> Rows:
        if self.said.hf_hub_url:
            split = self.said.split or "train"
            return open_files(files_of(self.said.hf_hub_url, self.said.subset, self.said.folder, split))
        name = str(self.said.file_name)
        path = place(f"{self.folder}/{name}" if self.folder and not Path(name).is_absolute() else name)
        if self.said.file_sha1:
            check_sum(path, "sha1", self.said.file_sha1, self.where)
        return open_rows(path)

    def _check_columns(self, rows: Rows) -> None:
        """Refuses a name that no row has; rows of JSON may lack what others have, so that it may take all of them."""
        absent = set(self.said.named.values())
        there: dict[str, None] = {}
        for index in range(len(rows)):
            try:
                there |= dict.fromkeys(map(str, rows[index]))
            except DataError:
                continue
            absent -= there.keys()
            if not absent:
                return
        if there and absent:
            problems = [
                f"{self.where}: columns.{name}: no row has a column {column!r}{suggest(column, there)}"
                for name, column in self.said.named.items()
                if column in absent
            ]
            raise ConfigError("\n".join([*problems, f"there are {', '.join(there)}"]))


def read_entry(path: str, name: str) -> Entry:
    """Reads an entry.

    Args:
        path: of the file, as of `place`.
        name: the entry's.

    Raises:
        ConfigError: no such file or entry, or one that says what can't be done; with all of it.
    """
    file = place(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: can't be read as a dataset_info.json: {error}") from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path}: isn't LLaMA-Factory's dataset_info.json, an object of entries; name a file of rows")
    if name not in found:
        raise ConfigError(f"{path}: no entry {name!r}{suggest(name, found)}; there are {', '.join(found) or 'none'}")
    where = f"{path}: entry {name!r}"
    if not isinstance(found[name], Mapping):
        raise ConfigError(f"{where}: should be an object with a file_name or hf_hub_url")
    try:
        said = Description.model_validate(found[name])
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_explained(item)}" for item in error.errors())) from None
    problems = [f"{where}: {problem}" for check in _CHECKS for problem in check(said)]
    if problems:
        raise ConfigError("\n".join(problems))
    return Entry(where, path.rpartition("/")[0], file.parent, said)


def _explained(item: Any) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] != "extra_forbidden":
        return f"{key}: {wrong(item)}"
    inner: dict[str, type[Strict]] = {"columns": Columns, "tags": Tags}
    of = inner.get(str(item["loc"][0]), Description) if len(item["loc"]) > 1 else Description
    return f"{key}: not known here{suggest(str(item['loc'][-1]), of.model_fields)}; remove it, or mend it"


def _place(said: Description) -> Iterator[str]:
    """Yields what is wrong with where the rows are."""
    if said.hf_hub_url:
        if said.file_sha1:
            yield "file_sha1: is of a file, and the entry names a data set of the hub; remove it"
        return
    elsewhere = [name for name in _ELSEWHERE if getattr(said, name) is not None]
    yield from (f"{name}: {_ELSEWHERE[name]}" for name in elsewhere)
    if not said.file_name and not elsewhere:
        yield "names neither a file_name nor a hf_hub_url; add one"
    for name in ("subset", "folder"):
        if getattr(said, name) is not None:
            yield f"{name}: is for data sets of the hub, and the entry names a file; remove it"
    if said.split not in (None, "train"):
        yield f"split: a file is all of its rows; got {said.split!r}; remove it, or name the split's file"


def _columns(said: Description) -> Iterator[str]:
    """Yields what is wrong with the columns."""
    idle = _ASKS if said.talks else ("messages",)
    for name in idle:
        if name in said.named:
            yield f"columns.{name}: isn't read with formatting: {said.formatting}; remove it, or mend formatting"
    if said.talks and "messages" not in said.named:
        yield "columns: names no messages; add it"
    if not said.talks and not {"prompt", "query"} & said.named.keys():
        yield "columns: names neither prompt nor query; add one"
    if not said.talks and not said.ranking and "response" not in said.named:
        yield "columns: names no response: texts for pre-training have none, and answers are what is learned; name one"


def _answers(said: Description) -> Iterator[str]:
    """Yields what is wrong with how answers are judged."""
    stated = [name for name in _PAIR if name in said.named]
    if said.ranking and len(stated) < len(_PAIR):
        yield "ranking: needs columns.chosen and columns.rejected; name both"
    if stated and not said.ranking:
        yield f"columns.{stated[0]}: is read with ranking: true; state that, or remove {' and '.join(stated)}"
    if said.ranking and "kto_tag" in said.named:
        yield "columns.kto_tag: judges one answer, and with ranking there are two; remove one of them"


def _speakers(said: Description) -> Iterator[str]:
    """Yields what is wrong with the turns' tags."""
    if said.formatting == "openai":
        yield (
            "formatting: openai: adds a system text of LLaMA-Factory's own, 'detailed thinking off'; write sharegpt, "
            "which reads the same turns and their tool_calls, and the text into the rows if it is meant"
        )
    if said.tags is not None and not said.talks:
        yield "tags: are of turns, which formatting: alpaca doesn't have; remove them, or mend formatting"
    elif said.talks:
        for name in ("role_tag", "content_tag", "user_tag", "assistant_tag"):
            if name not in said.spoken:
                yield f"tags: names no {name}; add it"
        names = [tag for tag in SPEAKERS if tag in said.spoken]
        twice = [tag for tag in names if [said.spoken[other] for other in names].count(said.spoken[tag]) > 1]
        if twice:
            yield f"tags: {' and '.join(twice)} are both {said.spoken[twice[0]]!r}; give each its own"


_CHECKS: Final = (_place, _columns, _answers, _speakers)
