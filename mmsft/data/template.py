"""Chat templates: the tokenizer's own, the ones shipped here, or a file; and what each of them needs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeAlias

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import _compile_jinja_template

from mmsft.data.tokens import Tokenizer
from mmsft.errors import ConfigError, DataError, suggest

Message: TypeAlias = Mapping[str, Any]
"""A turn as chat templates read it: role, content, tool_calls, reasoning_content …"""

SHIPPED: Final = ("plain", "alpaca", "vicuna", "chatml", "hash")
"""Templates that come with mmsft, in mmsft/data/templates."""

# What a template's code can raise on messages that it wasn't written for.
_FAILURES: Final = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)

_PROBE: Final = "mmsft probe"
_PROBE_CALL: Final = {"type": "function", "function": {"name": "probe", "arguments": {"a": 1}}}
_PROBE_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "a"}}},
    },
}


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template and how it wants its messages.

    Attributes:
        name: for errors.
        source: the Jinja text.
        tool_source: the text for conversations with tools, where the tokenizer has one for them.
        as_parts: content is a list of parts, not a string.
        as_json: the arguments of a tool call are JSON text, not a mapping.
    """

    name: str
    source: str
    tool_source: str | None = None
    as_parts: bool = False
    as_json: bool = False

    def render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        generate: bool = False,
    ) -> str:
        """Returns the conversation as one text; with `generate`, up to where the assistant begins to speak.

        Args:
            messages: the turns, made of text, numbers, mappings and lists only: the template is a stranger's code.
            variables: what else the template can name, the tokenizer's `named` tokens among them.
            tools: the functions' schemas, made likewise.
            generate: whether the assistant is to speak next.

        Raises:
            DataError: the template refuses these messages, or fails on them.
        """
        source = self.tool_source if tools and self.tool_source else self.source
        try:
            # `apply_chat_template` does the same, but copies all that it is given, deeply and each time anew.
            return _compiled(source).render(
                messages=[self._shaped(message) for message in messages],
                tools=list(tools) or None,
                add_generation_prompt=generate,
                **{"documents": None, **variables},
            )
        except _FAILURES as error:
            raise DataError(f"the chat template {self.name!r} refuses the conversation: {error}") from error

    def _shaped(self, message: Message) -> Message:
        shaped: dict[str, Any] = {}
        if self.as_parts:
            shaped["content"] = [{"type": "text", "text": message["content"]}]
        if self.as_json and "tool_calls" in message:
            shaped["tool_calls"] = [_with_json_arguments(call) for call in message["tool_calls"]]
        if "reasoning_content" in message:
            # The name that gpt-oss's template knows it by.
            shaped["thinking"] = message["reasoning_content"]
        return {**message, **shaped} if shaped else message


def resolve_template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """Returns a template, tried out on the tokenizer.

    Args:
        name: ``auto`` (the tokenizer's own), the name of a shipped template, or a Jinja file.
        tokenizer: what it will render for.

    Raises:
        ConfigError: there is no such template, its syntax is wrong, or it doesn't fit the tokenizer.
    """
    if (file := template_in_file(name)) is not None:
        template = file
    else:
        template = _own(tokenizer) if name == "auto" else _shipped(name, tokenizer)
    return _fitted(template, tokenizer)


def template_in_file(name: str) -> ChatTemplate | None:
    """Reads the template if its name means a file; None if it comes from the tokenizer or with mmsft.

    Raises:
        ConfigError: there is no such template, or the file can't be read.
    """
    if name in ("auto", *SHIPPED):
        return None
    path = Path(name).expanduser()
    if "/" in name or name.endswith((".jinja", ".jinja2", ".j2")) or path.is_file():
        return _file(path)
    raise ConfigError(
        f"template: there is no {name!r}{suggest(name, ('auto', *SHIPPED))}; "
        f"write auto, {', '.join(SHIPPED)}, or a .jinja file"
    )


def _own(tokenizer: Tokenizer) -> ChatTemplate:
    own = tokenizer.hf.chat_template
    if isinstance(own, dict):
        default = own.get("default")
        if default is not None:
            return ChatTemplate("auto", default, own.get("tool_use"))
    elif own is not None:
        return ChatTemplate("auto", own)
    raise ConfigError(
        f"template: auto, but the tokenizer of {tokenizer.hf.name_or_path or 'the decoder'} has no chat template; "
        f"choose {', '.join(SHIPPED)}, or a .jinja file"
    )


def _shipped(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    source = (resources.files("mmsft.data") / "templates" / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    missing = [token for token in re.findall(r"<\|\w+\|>", source) if token not in tokenizer.added]
    if missing:
        raise ConfigError(
            f"template: {name} needs the tokens {', '.join(sorted(set(missing)))}, which the tokenizer doesn't have; "
            "add them under model.decoder.new_tokens, or choose another template"
        )
    if "eos_token" in source and not tokenizer.eos:
        raise ConfigError(f"template: {name} ends each reply with the tokenizer's end token, but it has none")
    if not tokenizer.bos:
        # Some tokenizers name a first token that they don't put: SmolLM2's is <|im_start|>.
        source = "{%- set bos_token = '' -%}\n" + source
    return ChatTemplate(name, source)


def _file(path: Path) -> ChatTemplate:
    try:
        return ChatTemplate(str(path), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"template: {path} can't be read ({error}); write auto, {', '.join(SHIPPED)}, or a .jinja file"
        ) from error


def _fitted(template: ChatTemplate, tokenizer: Tokenizer) -> ChatTemplate:
    """Finds out in which form the template takes content and the arguments of tool calls."""
    user = {"role": "user", "content": _PROBE}
    shows = partial(_shows, tokenizer, [user], _PROBE)
    try:
        fits = next((form for form in (template, replace(template, as_parts=True)) if shows(form)), None)
    except TemplateSyntaxError as error:
        raise ConfigError(f"template: {template.name}, line {error.lineno}: {error.message}") from error
    if fits is None:
        fits = template
        fits.render([user], tokenizer.named, generate=True)
        raise ConfigError(f"template: {template.name} doesn't show what a user says; is it a chat template?")
    calls: list[Message] = [
        user,
        {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]},
        {"role": "tool", "content": "1", "name": "probe"},
    ]
    if not _shows(tokenizer, calls, "probe", fits):
        text_arguments = replace(fits, as_json=True)
        if _shows(tokenizer, calls, "probe", text_arguments):
            return text_arguments
    return fits


def _shows(tokenizer: Tokenizer, messages: Sequence[Message], text: str, template: ChatTemplate) -> bool:
    tools = (_PROBE_TOOL,) if any("tool_calls" in message for message in messages) else ()
    try:
        return text in template.render(messages, tokenizer.named, tools=tools, generate=True)
    except DataError as error:
        if isinstance(error.__cause__, TemplateSyntaxError):
            raise error.__cause__ from None
        return False


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    """Compiles a template in the sandbox of `transformers`, with its filters and functions."""
    environment: Environment = _compile_jinja_template(source).environment
    # With a plain dict of the globals: `from_string` makes a chain of two, which is copied slowly at each rendering.
    return Template.from_code(environment, environment.compile(source), dict(environment.globals))


def _with_json_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    import json

    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
