"""What pydantic finds wrong with a value, in words that say what to write instead."""

from typing import Any, Final

from mmsft.errors import suggest

_EXPECTED: Final = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "dataclass_type": "a mapping",
}


def wrong(item: Any) -> str:
    """Returns what is wrong with the value of one of pydantic's error items, and what is right."""
    kind, given, bounds = item["type"], item["input"], item.get("ctx", {})
    if kind == "missing":
        return "required, and not given"
    if kind in ("too_short", "too_long"):
        return _wrong_length(len(given), bounds.get("min_length"), bounds.get("max_length"))
    if kind == "string_too_short":
        return "is empty; write a text"
    if kind not in _EXPECTED:
        return str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    shown = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in bounds.items()}
    expected = _EXPECTED[kind].format_map(shown)
    if isinstance(given, dict | list) or given is None:
        return f"should be {expected}, this is {kind_of(given)}"
    quotes = "; put it in quotes" if kind == "string_type" else ""
    choices = expected.replace("'", "").replace(" or ", ", ").split(", ") if kind == "literal_error" else []
    return f"should be {expected}, got {given!r}{quotes}{suggest(str(given), choices)}"


def _wrong_length(count: int, least: int | None, most: int | None) -> str:
    takes = f"{least} or more" if least is not None else f"at most {most}"
    return f"has {count or 'no'} {'entry' if count == 1 else 'entries'}; give it {takes}"


def kind_of(value: Any) -> str:
    """Returns what a YAML value is, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "empty"}
    return names.get(type(value), "a number")
