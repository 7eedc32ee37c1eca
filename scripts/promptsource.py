"""Renders each of PromptSource's templates on rows of its own fields, and counts those that give question and answer.

``python -m scripts.promptsource`` (``mmsft assets fetch promptsource`` once). No data set is needed: the fields and
their kinds are told from what a template does with them, and it renders if one of the rows that are made so renders.
What it gives is compared with what plain Jinja gives in PromptSource's manner, unless the template draws.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, TemplateError, nodes

from mmsft.assets import asset_path
from mmsft.data.wordings import NoTarget, Wording, read_wordings
from mmsft.errors import DataError
from scripts.template_fields import fields_of, rows_of

VARIANTS: Final = 24
"""Rows that are tried for each template."""
_EDITED: Final = {"original1": "The <cat/> sat.", "original2": "The <dog/> sat."}
FORMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "Zaid/coqa_expanded": {"answer": {"answer_start": 0, "answer_end": 9}},
    "cbt/raw": {"title": "Ada_Lovelace___Notes.on_an_engine.txt.out"},
    "coqa": {"answers": {"answer_start": [0], "answer_end": [9]}},
    "e2e_nlg_cleaned": {
        "meaning_representation": "name[Ada's], eatType[pub], food[Fast food], customer rating[high], "
        "area[city centre], familyFriendly[yes], near[Burger King], priceRange[cheap]"
    },
    "freebase_qa": {
        "Parses": {"InferentialChain": ["people.person.place_of_birth"], "Answers": [{"AnswersName": [["London"]]}]}
    },
    "great_code": {"source_tokens": ["def add(", "#NEWLINE#", "#INDENT#", "return", "1"]},
    "humicroedit/subtask-2": _EDITED,
    "openai_humaneval": {"test": 'def check(add):\n    assert add(1, 2) == 3, "sum"\n'},
    "selqa/answer_selection_analysis": {"answers": [0, 1]},
}
"""Values of a form that no template tells, by the folder of those that take them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a template.

    Attributes:
        file: that it is in, below the folder.
        name: the template's.
        why: it doesn't render on the last of its rows; empty where it renders.
        formed: it renders on rows with a value of `FORMS` only.
        same: what it gives is what PromptSource gives; None = not compared, since it draws.
    """

    file: Path
    name: str
    why: str = ""
    formed: bool = False
    same: bool | None = None


def outcomes(root: Path, step: int = 1) -> Iterator[Outcome]:
    """Yields what becomes of the templates below a folder, in each file or in every so-manieth."""
    for file in sorted(root.rglob("*.yaml"))[::step]:
        for wording in read_wordings(file):
            yield outcome(wording, file.relative_to(root))


def outcome(wording: Wording, file: Path) -> Outcome:
    """Tries a template on its rows."""
    why = ""
    for formed in (False, True):
        fields = fields_of(_plain(), wording.jinja, wording.choices or "")
        for row in rows_of(fields, VARIANTS):
            if formed:
                row |= FORMS.get(file.parent.as_posix(), {})
            try:
                given = wording.render(row, "row")
            except (NoTarget, DataError) as error:
                why = str(error)
                continue
            same = None if _draws(wording) else _promptsource(wording, row) == given[:2]
            return Outcome(file, wording.name, "", formed, same)
    return Outcome(file, wording.name, why)


def _promptsource(wording: Wording, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what PromptSource gives for a row: undefined is empty, and what is written is cut at 2,048 characters."""
    environment = _plain()
    try:
        choices = None
        if wording.choices:
            choices = [it.strip() for it in environment.from_string(wording.choices).render(row).split("|||")]
        cut = wording.jinja.replace("}}", " | string | truncate(2048) }}")
        said = environment.from_string(cut).render({**row, "answer_choices": choices})
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        return (str(error),)
    return tuple(part.strip() for part in said.split("|||"))


def _plain() -> Environment:
    environment = Environment()
    environment.globals["zip"] = zip
    environment.filters["choice"] = lambda items: items[0]
    environment.filters["most_frequent"] = _most_frequent
    return environment


def _most_frequent(items: Sequence[Any]) -> list[Any]:
    most = max(Counter(items).values())
    return [item for item, times in Counter(items).items() if times == most]


def _draws(wording: Wording) -> bool:
    filters = _plain().parse(wording.jinja + (wording.choices or "")).find_all(nodes.Filter)
    return any(each.name in ("choice", "random") for each in filters)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="PromptSource's templates; the asset by default")
    given = parser.parse_args(arguments)
    found = list(outcomes(given.folder or asset_path("promptsource")))
    failed = [it for it in found if it.why]
    formed = sum(it.formed for it in found)
    compared = [it for it in found if it.same is not None]
    print(f"{len(found)} templates in {len({it.file for it in found})} files")
    print(f"{len(found) - len(failed)} render, {formed} of them on rows with a value made by hand; {len(failed)} don't")
    print(f"{sum(it.same is True for it in compared)} of {len(compared)} that don't draw give what PromptSource gives")
    for it in failed:
        print(f"  {it.file.parent}, {it.name!r}: {it.why}")
    for it in compared:
        if not it.same:
            print(f"  {it.file.parent}, {it.name!r}: otherwise than PromptSource")


if __name__ == "__main__":
    main()
