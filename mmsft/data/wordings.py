"""Instructions as data: Jinja templates in YAML make a question and its answer of a row's fields, in many wordings."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import Environment, StrictUndefined, Template, TemplateError, pass_context, pass_environment
from jinja2.filters import do_truncate
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

from mmsft.data.formats.chance import pick
from mmsft.data.formats.dialogue import read_dialogue
from mmsft.data.formats.media_tags import COLUMNS
from mmsft.data.rows import Rows
from mmsft.errors import ConfigError, DataError, LeftOut, suggest
from mmsft.types import ROOT, Conversation, Record

BETWEEN: Final = "|||"
"""Stands between the question and the answer, and between answer choices, as PromptSource has it."""
WORDING: Final = "wording"
"""The tag that names a row's wording, for losses and scores by wording."""

_LONGEST: Final = 2048
"""Characters that a template writes of one expression, as PromptSource has it."""
_PIPES: Final = "\ue0f3mmsft pipes\ue0f3"
_ROW: Final = "__row__"
_FAILURES: Final = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_MEDIA: Final = ("media", *(name for names in COLUMNS.values() for name in names))


class NoTarget(LeftOut):
    """A wording doesn't apply to a row: it gives a question without an answer."""


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to ask.

    Attributes:
        name: in tags and errors.
        jinja: the question and its answer, with `BETWEEN` between them.
        choices: the answers to choose from, likewise; the template sees them as ``answer_choices``.
        system: the system's text, if it has one.
    """

    name: str
    jinja: str
    choices: str | None = None
    system: str | None = None

    def render(self, record: Record, row: str) -> tuple[str, str, tuple[str, ...]]:
        """Returns question, answer and answer choices.

        Raises:
            NoTarget: the wording gives the row no answer.
            DataError: it fails on the row.
        """
        # Copies, which a template may change: PromptSource's collect words in lists.
        fields: dict[str, Any] = {str(name): _protected(value) for name, value in record.items()}
        fields[_ROW] = count(), f"{row} {self.name}"
        try:
            choices: tuple[str, ...] = ()
            if self.choices:
                choices = tuple(
                    part.strip() for part in _compiled(self.choices, whole=True).render(fields).split(BETWEEN)
                )
                fields["answer_choices"] = list(choices)
            question, *answer = _compiled(self.jinja).render(fields).split(BETWEEN, 1)
        except _FAILURES as error:
            raise DataError(f"{row}: the wording {self.name!r} fails on it: {error}; mend it, or the row") from None
        if not answer or not answer[0].strip():
            raise NoTarget(f"{row}: the wording {self.name!r} gives it no answer")
        return _whole(question), _whole(answer[0]), tuple(map(_whole, choices))


@dataclass(frozen=True)
class Wordings:
    """Reads rows of fields by templates: a data format.

    Attributes:
        wordings: to choose from.
        use: one is ``drawn`` for each row, or ``all`` are branches of one conversation; with ``each``, a row comes once
            for each of them.
        seed: of the draw.
    """

    wordings: tuple[Wording, ...]
    use: str = "drawn"
    seed: int = 0

    def __call__(self, record: Record, row: str) -> Conversation:
        """Returns the row as a conversation, tagged with its wording; of several, each branch is.

        Raises:
            NoTarget: no wording gives the row an answer.
            DataError: a wording fails on it, or its files and tags differ in number.
        """
        if self.use == "all":
            return self._all(record, row)
        wording = self._named(record[WORDING]) if self.use == "each" else pick(row, WORDING, self.seed, self.wordings)
        return _conversation(wording, record, row)

    def _named(self, name: str) -> Wording:
        return next(wording for wording in self.wordings if wording.name == name)

    def _all(self, record: Record, row: str) -> Conversation:
        """Returns a conversation with a branch for each wording that applies."""
        branches: list[Conversation] = []
        refused: NoTarget | None = None
        for wording in self.wordings:
            try:
                branches.append(_conversation(wording, record, row))
            except NoTarget as error:
                refused = refused or error
        if not branches:
            assert refused is not None
            raise refused
        turns = [
            (replace(branch.turns[0], parent=ROOT, tags=tuple(branch.tags.items())), *branch.turns[1:])
            for branch in branches
        ]
        return replace(branches[0], turns=tuple(chain(*turns)), tags={})


@dataclass(frozen=True)
class EachWording:
    """Rows that come once for each wording.

    Attributes:
        rows: of the file.
        names: of the wordings.
    """

    rows: Rows
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.names)

    def __getitem__(self, index: int) -> Record:
        """Reads a row; as of `Rows`."""
        row, which = divmod(index, len(self.names))
        return {**self.rows[row], WORDING: self.names[which]}

    def row_id(self, index: int) -> str:
        """Returns the row's name with its wording's."""
        row, which = divmod(index, len(self.names))
        return f"{self.rows.row_id(row)} ({self.names[which]})"


def read_wordings(path: Path, names: Sequence[str] = ()) -> tuple[Wording, ...]:
    """Reads templates: a list of ``name``, ``jinja``, ``answer_choices`` and ``system``, or a file of PromptSource.

    Args:
        path: the YAML file.
        names: of those that are wanted; all if there is none.

    Raises:
        ConfigError: no such file or name, or a template that can't be read; with all that is wrong.
    """
    try:
        value = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        near = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file{suggest(path.name, near)}; looked for {path.absolute()}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: can't be read as YAML: {error}") from None
    problems: list[str] = []
    found = list(_wordings(value, path, problems))
    twice = sorted({wording.name for wording in found if [other.name for other in found].count(wording.name) > 1})
    problems += [f"{path}: two templates are named {name!r}; rename one" for name in twice]
    known = [wording.name for wording in found]
    problems += [f"{path}: no template {name!r}{suggest(name, known)}" for name in names if name not in known]
    if problems or not found:
        raise ConfigError("\n".join(problems) or f"{path}: has no templates")
    return tuple(wording for wording in found if not names or wording.name in names)


def _wordings(value: Any, path: Path, problems: list[str]) -> Iterator[Wording]:
    listed = value.get("templates") if isinstance(value, Mapping) else value
    if isinstance(listed, Mapping):
        listed = list(listed.values())
    if not isinstance(listed, list):
        problems.append(f"{path}: should be a list of templates, each with a name and a jinja text")
        return
    for number, item in enumerate(listed, 1):
        where = f"{path}: template {number}"
        texts: dict[str, Any] = {name: item.get(name) for name in _FIELDS} if isinstance(item, Mapping) else {}
        wrong = [name for name, text in texts.items() if text is not None and not isinstance(text, str)]
        if not texts.get("name") or not texts.get("jinja") or wrong:
            problems.append(f"{where}: needs a name and a jinja text, each as text")
            continue
        wording = Wording(texts["name"], texts["jinja"], texts["answer_choices"], texts["system"])
        try:
            _compiled(wording.jinja)
            _compiled(wording.choices or "", whole=True)
        except TemplateError as error:
            problems.append(f"{where}, {wording.name!r}: not valid Jinja: {error}")
            continue
        yield wording


_FIELDS: Final = ("name", "jinja", "answer_choices", "system")


class _Loader(yaml.SafeLoader):
    """Plain values, and PromptSource's two tags as mappings."""


def _mapping(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
    assert isinstance(node, yaml.MappingNode)
    return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def _conversation(wording: Wording, record: Record, row: str) -> Conversation:
    question, answer, _ = wording.render(record, row)
    files = {name: record[name] for name in _MEDIA if name in record}
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return replace(read_dialogue({**files, "system": wording.system}, row, turns), tags={WORDING: wording.name})


def _protected(value: Any) -> Any:
    """Returns a field as a template sees it: a copy, with its own bars kept apart from the template's."""
    match value:
        case str():
            return value.replace(BETWEEN, _PIPES)
        case Mapping():
            return {name: _protected(item) for name, item in value.items()}
        case list() | tuple():
            return [_protected(item) for item in value]
        case _:
            return value


def _whole(text: str) -> str:
    return text.replace(_PIPES, BETWEEN).strip()


@lru_cache(maxsize=8192)
def _compiled(source: str, whole: bool = False) -> Template:
    return _environment(whole).from_string(source)


@lru_cache(maxsize=2)
def _environment(whole: bool) -> SandboxedEnvironment:
    """Returns where templates run.

    Args:
        whole: nothing is cut; a list of answers would lose some.
    """
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, extensions=["jinja2.ext.do"], finalize=None if whole else _cut
    )
    environment.globals["zip"] = zip
    environment.filters |= {"choice": _choice, "random": _choice, "most_frequent": _most_frequent}
    return environment


@pass_environment
def _cut(environment: Environment, value: Any) -> Any:
    said = str(value)
    return value if len(said) <= _LONGEST else do_truncate(environment, said, _LONGEST)


@pass_context
def _choice(context: Context, items: Sequence[Any]) -> Any:
    """PromptSource's filter: one of several, drawn for the row, and for each place in the template anew."""
    numbers, row = context[_ROW]
    return pick(f"{row} {next(numbers)}", "choice", 0, list(items))


def _most_frequent(items: Sequence[Any]) -> list[Any]:
    """PromptSource's filter: those that come most often."""
    counts = Counter(items)
    return [item for item, times in counts.items() if times == max(counts.values())]
