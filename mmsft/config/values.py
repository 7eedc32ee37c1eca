"""The values that settings take, and how wrong ones are refused."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from mmsft.duration import Duration, Unit


@dataclass(frozen=True, slots=True)
class Spec:
    """A part chosen by name: the `kind` that the config states and the frozen dataclass it stands for."""

    kind: str
    value: Any


def _resolve(role: str) -> PlainValidator:
    def resolve(value: Any, info: ValidationInfo) -> Spec:
        if isinstance(value, Spec):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
            raise ValueError("write a mapping with a `kind`")
        if info.context is None:
            raise ValueError(f"a {role} is resolved by mmsft.load_run")
        spec: Spec = info.context[role](value)
        return spec

    return PlainValidator(resolve)


def _dump_spec(spec: Spec) -> dict[str, Any]:
    values = {field.name: getattr(spec.value, field.name) for field in fields(spec.value)}
    return {"kind": spec.kind, **{name: _dump(value) for name, value in values.items()}}


def _dump(value: Any) -> Any:
    if isinstance(value, Spec):
        return _dump_spec(value)
    if isinstance(value, tuple):
        return tuple(_dump(item) for item in value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


ModalitySpec = Annotated[
    Spec, _resolve("modality"), PlainSerializer(_dump_spec), Field(description="mapping with a `kind`")
]
AdapterSpec = Annotated[
    Spec, _resolve("adapter"), PlainSerializer(_dump_spec), Field(description="mapping with a `kind`")
]


def _amount(*units: Unit) -> tuple[Any, ...]:
    def parse(value: Any) -> Duration:
        if not isinstance(value, str | Duration):
            raise ValueError(f"write an amount with its unit, {_either(units)}: '100 {units[0]}', got {value!r}")
        amount = Duration.parse(value) if isinstance(value, str) else value
        if amount.unit not in units:
            raise ValueError(f"{amount} is counted in {amount.unit}; this setting takes {_either(units)}")
        return amount

    return PlainValidator(parse), PlainSerializer(str), Field(description=f"an amount in {_either(units)}")


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _warmup(value: Any) -> float | Duration:
    if isinstance(value, str | Duration):
        amount = Duration.parse(value) if isinstance(value, str) else value
        if amount.unit == "steps":
            return amount
    elif isinstance(value, int | float) and 0 <= value < 1:
        return float(value)
    raise ValueError(
        f"write the part of the stage, from 0 to below 1, or a number of steps: '100 steps'; got {value!r}"
    )


def _texts(value: Any) -> Any:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"write a text or a list of texts, with quotes around numbers and true or false; got {value!r}"
        )
    return tuple(texts)


def distinct(what: str, way_out: str, name_of: Callable[[Any], object]) -> WrapValidator:
    """Refuses a list with two items of one name, beside whatever else is wrong with the items."""

    def check(value: Any, rest: ValidatorFunctionWrapHandler) -> Any:
        names = [name_of(item) for item in value] if isinstance(value, Sequence) else []
        twice = sorted({str(name) for name in names if name is not None and names.count(name) > 1})
        message = f"two {what} have one name, {', '.join(twice)}: {way_out}" if twice else ""
        try:
            result = rest(value)
        except ValidationError as error:
            raise _with(error, message, value) if message else error from None
        if message:
            raise ValueError(message)
        return result

    return WrapValidator(check)


def _with(error: ValidationError, message: str, value: Any) -> ValidationError:
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(line["type"], line["msg"], line.get("ctx")),
            loc=line["loc"],
            input=line["input"],
        )
        for line in error.errors(include_url=False)
    ]
    own = InitErrorDetails(type=PydanticCustomError("value_error", message), loc=(), input=value)
    return ValidationError.from_exception_data(error.title, [*lines, own])


def setting(item: Any, name: str) -> Any:
    """Returns a setting of a model or of the mapping that is to become one."""
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def source_name(source: Any) -> Any:
    """Returns the name that a source goes by: its own, that of its entry, or its file's."""
    path = setting(source, "path")
    return (
        setting(source, "name")
        or setting(source, "entry")
        or (path.rstrip("/").rsplit("/", 1)[-1] if isinstance(path, str) else None)
    )


Length = Annotated[Duration, *_amount("epochs", "steps", "tokens", "examples")]
Interval = Annotated[Duration, *_amount("steps", "epochs")]
BatchSize = Annotated[Duration, *_amount("examples", "tokens")]
Tokens = Annotated[Duration, *_amount("tokens")]
Warmup = Annotated[
    float | Duration,
    PlainValidator(_warmup),
    PlainSerializer(lambda value: str(value) if isinstance(value, Duration) else value),
    Field(description="part of the stage, or an amount in steps"),
]


Size = Annotated[
    ByteSize,
    PlainSerializer(lambda value: f"{value / 1e9:g} GB" if value % 10**6 == 0 else int(value)),
    Field(gt=0, description="bytes, or with a unit: `20 GB`"),
]


def _matching(pattern: str, words: str) -> tuple[Any, ...]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} isn't a name; write {words}")
        return value

    return AfterValidator(check), Field(description="a name")


Name = Annotated[str, Field(min_length=1)]
StageName = Annotated[
    str, *_matching(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "letters, digits, _, . and -, beginning with a letter or a digit")
]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Strings = Annotated[tuple[str, ...], BeforeValidator(_texts), Field(description="text or list of texts")]
TowerName = Annotated[str, *_matching(r"[A-Za-z][A-Za-z0-9_]*", "letters, digits and _, beginning with a letter")]
