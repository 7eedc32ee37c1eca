"""Tells which fields Jinja templates read, of what kind each is, and makes rows of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2 import Environment, nodes

_OF_LISTS: Final = frozenset(
    ["join", "length", "first", "last", "choice", "random", "map", "select", "reject", "selectattr"]
).union(["unique", "sort", "list", "most_frequent", "min", "max"])
"""Filters of lists. Texts have a length and a first letter too, and are taken for lists then."""
_OF_NUMBERS: Final = frozenset(("int", "float", "round", "abs"))
_OF_TEXTS: Final = frozenset(("lower", "upper", "replace", "trim", "capitalize", "title", "format"))
_METHODS_OF_TEXTS: Final = frozenset(
    ("split", "lower", "upper", "replace", "strip", "capitalize", "title", "startswith", "endswith")
)
_METHODS_OF_LISTS: Final = frozenset(("append", "index", "pop", "count"))
_METHODS_OF_OBJECTS: Final = frozenset(("keys", "values", "items", "update", "get"))
_ARITHMETIC: Final = (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg)
_SENTENCE: Final = "Ada wrote notes in 1842, long ago; her engine (never built) could add: 3 + 4 = 7. She was right"


@dataclass
class Field:
    """What templates do with a value.

    Attributes:
        fields: are looked up by name in it.
        item: of a list; None = it isn't used as one.
        kinds: ``number``, ``text``, ``list`` or ``object``, where an operation tells.
        words: it is compared with.
        between: texts at which it is split, or that are looked for in it.
        part: what is between them.
    """

    fields: "dict[str, Field]" = field(default_factory=dict)
    item: "Field | None" = None
    kinds: set[str] = field(default_factory=set)
    words: list[Any] = field(default_factory=list)
    between: list[str] = field(default_factory=list)
    part: "Field | None" = None

    def named(self, name: str) -> "Field":
        """Returns the field of that name in it."""
        return self.fields.setdefault(name, Field())

    def each(self) -> "Field":
        """Returns what all of its items are."""
        self.item = self.item or Field()
        return self.item

    def value(self, variant: int) -> Any:
        """Returns a value that fits; variants differ in numbers, words, and how many items there are."""
        if self.fields:
            return {name: inner.value(variant) for name, inner in self.fields.items()}
        if "object" in self.kinds:
            return {name: self.each().value(variant) for name in ("one", "two")}
        if ("list" in self.kinds or self.item is not None) and "text" not in self.kinds:
            item = self.each()
            return [item.value(variant + (number if variant % 2 else 0)) for number in range(2 + variant % 5)]
        if self.words and variant < 4 * len(self.words):
            return self.words[variant // 2 % len(self.words)]
        if "number" in self.kinds:
            return variant // 2
        sentence = _SENTENCE if variant % 2 == 0 else f"{_SENTENCE}, {variant}"
        part = sentence if self.part is None or not self.part.words else str(self.part.value(variant))
        return "".join(f"{part}{between}" for between in self.between * 8) + f"{part}."


def fields_of(environment: Environment, source: str, choices: str) -> Field:
    """Returns what a template and its answer choices read, by name, as the fields of one value."""
    reader = _Reader(environment)
    reader.template(choices)
    fixed = [] if reader.row.fields else [nodes.Const(choice.strip()) for choice in choices.split("|||")]
    reader.template(source, {"answer_choices": nodes.List(fixed)})
    reader.row.fields.pop("answer_choices", None)
    return reader.row


def rows_of(row: Field, variants: int) -> Iterator[dict[str, Any]]:
    """Yields rows that have the fields, in so many variants."""
    for variant in range(variants):
        yield {name: inner.value(variant) for name, inner in row.fields.items()}


class _Reader:
    """Walks through a template; what it is told of a variable it notes at the field that the variable came from."""

    def __init__(self, environment: Environment) -> None:
        self.row = Field()
        self._environment = environment
        self._bound: dict[str, Field] = {}
        self._constants: dict[str, nodes.Node] = {}
        self._reads: Mapping[type[nodes.Node], Callable[[Any], Field]] = {
            nodes.Name: self._name,
            nodes.Getattr: lambda node: self.read(node.node).named(node.attr),
            nodes.Getitem: self._getitem,
            nodes.For: self._for,
            nodes.Assign: self._assign,
            nodes.Filter: self._filter,
            nodes.Call: self._call,
            nodes.Compare: self._compare,
            nodes.CondExpr: self._cond,
        }

    def template(self, source: str, constants: Mapping[str, nodes.Node] | None = None) -> None:
        """Reads a template, in which some variables have a value."""
        self._bound = {"loop": Field(), "self": Field()}
        self._constants = dict(constants or {})
        self.read(self._environment.parse(source))

    def read(self, node: nodes.Node) -> Field:
        """Notes what a node does, and returns the field that it stands for, if only for itself."""
        special = self._reads.get(type(node))
        if special is not None:
            return special(node)
        inner = list(node.iter_child_nodes())
        found = [self.read(child) for child in inner]
        if isinstance(node, _ARITHMETIC) and not any(map(_is_text, inner)):
            joins = isinstance(node, nodes.Add) and any(isinstance(it, nodes.Call) for it in inner)
            for operand in found:
                operand.kinds.add("text" if joins else "number")
        return Field()

    def _name(self, node: nodes.Name) -> Field:
        if node.name in self._bound:
            return self._bound[node.name]
        return Field() if node.name in self._environment.globals else self.row.named(node.name)

    def _getitem(self, node: nodes.Getitem) -> Field:
        found, by = self.read(node.node), self.read(node.arg)
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return found.named(node.arg.value)
        if isinstance(node.arg, nodes.Slice):
            for bound in node.arg.iter_child_nodes():
                self.read(bound).kinds.add("number")
            return found
        keys = self._known(node.node)
        if isinstance(keys, nodes.Dict):
            by.words += [pair.key.value for pair in keys.items if isinstance(pair.key, nodes.Const)]
            return Field()
        by.kinds.add("number")
        return found.each()

    def _for(self, node: nodes.For) -> Field:
        if isinstance(node.iter, nodes.Call) and _calls(node.iter, "zip") and isinstance(node.target, nodes.Tuple):
            for target, zipped in zip(node.target.items, node.iter.args, strict=False):
                self._bind(target, self.read(zipped).each())
        else:
            self._bind(node.target, self.read(node.iter).each())
        for child in (*([node.test] if node.test else []), *node.body, *node.else_):
            self.read(child)
        return Field()

    def _assign(self, node: nodes.Assign) -> Field:
        self._bind(node.target, self.read(node.node))
        if isinstance(node.target, nodes.Name) and isinstance(node.node, nodes.Dict | nodes.List):
            self._constants[node.target.name] = node.node
        return Field()

    def _known(self, node: nodes.Node) -> nodes.Node:
        """Returns the value of a variable that the template sets; else the node."""
        return self._constants.get(node.name, node) if isinstance(node, nodes.Name) else node

    def _bind(self, target: nodes.Node, found: Field) -> None:
        if isinstance(target, nodes.Name):
            self._bound[target.name] = found
        elif isinstance(target, nodes.Tuple):
            for each in target.items:
                self._bind(each, found.each())

    def _filter(self, node: nodes.Filter) -> Field:
        found = self.read(node.node) if node.node is not None else Field()
        for child in (*node.args, *node.kwargs):
            self.read(child)
        if node.name in _OF_NUMBERS:
            found.kinds.add("number")
        elif node.name in _OF_TEXTS:
            found.kinds.add("text")
            return found
        elif node.name in _OF_LISTS:
            return self._of_list(node, found)
        return found if node.name == "default" else Field()

    @staticmethod
    def _of_list(node: nodes.Filter, found: Field) -> Field:
        found.kinds.add("list")
        attribute = next((pair.value for pair in node.kwargs if pair.key == "attribute"), None)
        named = node.args[0] if node.name == "selectattr" else attribute
        if isinstance(named, nodes.Const):
            inner = found.each().named(str(named.value))
            inner.words += [it.value for it in node.args[2:] if isinstance(it, nodes.Const)]
            return Field(item=inner) if node.name == "map" else found
        if node.name in ("first", "last", "choice", "random", "min", "max"):
            return found.each()
        return found if node.name not in ("join", "length") else Field()

    def _call(self, node: nodes.Call) -> Field:
        given = [self.read(argument) for argument in node.args]
        if not isinstance(node.node, nodes.Getattr):
            if isinstance(node.node, nodes.Name) and node.node.name == "range":
                for found in given:
                    found.kinds.add("number")
            return Field()
        of, method, inside = self.read(node.node.node), node.node.attr, self._known(node.node.node)
        texts = [it.value for it in node.args[:1] if isinstance(it, nodes.Const) and isinstance(it.value, str)]
        if method in _METHODS_OF_TEXTS:
            of.kinds.add("text")
            of.between += texts if method == "split" else []
            of.part = of.part or Field()
            return Field(item=of.part) if method == "split" else of
        if method in _METHODS_OF_LISTS:
            of.kinds.add("list")
            of.between += texts
            if isinstance(inside, nodes.List) and given:
                given[0].words += [it.value for it in inside.items if isinstance(it, nodes.Const)]
        elif method in _METHODS_OF_OBJECTS:
            of.kinds.add("object")
        return Field()

    def _compare(self, node: nodes.Compare) -> Field:
        found = self.read(node.expr)
        for operand in node.ops:
            other = self.read(operand.expr)
            constants = operand.expr.items if isinstance(operand.expr, nodes.List | nodes.Tuple) else [operand.expr]
            values = [it.value for it in constants if isinstance(it, nodes.Const)]
            found.words += [value for value in values if value not in found.words]
            if isinstance(node.expr, nodes.Const) and operand.op in ("eq", "ne"):
                other.words.append(node.expr.value)
            if operand.op in ("in", "notin") and isinstance(node.expr, nodes.Const):
                other.kinds.add("text")
                other.between.append(f" {node.expr.value} ")
            if operand.op in ("lt", "gt", "lteq", "gteq"):
                found.kinds.add("number")
                other.kinds.add("number")
        return Field()

    def _cond(self, node: nodes.CondExpr) -> Field:
        for child in (node.test, *([node.expr2] if node.expr2 else [])):
            self.read(child)
        return self.read(node.expr1)


def _is_text(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


def _calls(node: nodes.Call, name: str) -> bool:
    return isinstance(node.node, nodes.Name) and node.node.name == name
