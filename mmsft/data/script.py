"""A conversation as its chat template writes it: the threads, where the replies stand in them, and what got lost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmsft.data.messages import Guard, Messages
from mmsft.data.template import ChatTemplate
from mmsft.errors import DataError
from mmsft.types import Conversation


class PrefixBroken(DataError):
    """The chat template writes a turn differently once another one follows, so training would differ from inference.

    Its arguments are what it does to which row, and what to do about it.
    """

    @property
    def what(self) -> str:
        """What the template does, and to which row."""
        return str(self.args[0])

    def __str__(self) -> str:
        return ". ".join(self.args)


class Reply(NamedTuple):
    """A turn in a rendered thread.

    Attributes:
        turn: its index.
        start: where what the model says begins.
        stop: where that ends, before the end token.
        end: the end token's text, or empty.
    """

    turn: int
    start: int
    stop: int
    end: str


class Script:
    """Renders the threads of one conversation, each prefix once.

    Args:
        conversation: what is rendered.
        template: how.
        guard: keeps content from becoming control tokens.
        variables: for the template; the conversation's own come on top.
    """

    def __init__(
        self, conversation: Conversation, template: ChatTemplate, guard: Guard, variables: Mapping[str, Any]
    ) -> None:
        self.conversation = conversation
        self.messages = Messages(conversation, guard)
        self._template = template
        self._tokenizer = guard.tokenizer
        self._variables = {**guard.tokenizer.named, **variables, **self.messages.variables}
        self._rendered: dict[tuple[bool, tuple[int, ...]], str] = {}

    def render(self, path: Sequence[int], generate: bool = False) -> str:
        """Returns the turns of `path` as one text; with `generate`, up to where the assistant begins to speak."""
        key = (generate, tuple(path))
        if key not in self._rendered:
            self._rendered[key] = self._write([self.messages[index] for index in path], generate)
        return self._rendered[key]

    def replies(self, path: Sequence[int], turns: Sequence[int]) -> list[Reply]:
        """Finds what a model says in the given assistant turns of a thread.

        Raises:
            PrefixBroken: a prompt or a reply isn't what the whole thread's text begins with.
            DataError: the template loses a turn's reasoning.
        """
        for turn in turns:
            self._show_reasoning(path[: path.index(turn) + 1])
        return [self._reply(path[: path.index(turn) + 1], self.render(path)) for turn in turns]

    def parted(self, paths: Sequence[Sequence[int]]) -> str:
        """Says where branches don't begin with the same text though they have turns in common; empty if all do."""
        for number, path in enumerate(paths[1:], 1):
            shared, near = max((_alike(path, other), other) for other in paths[:number])
            if 0 < shared < min(len(path), len(near)) and (told := self._told_apart(path[:shared], path, near)):
                return told
        return ""

    def check(self, path: Sequence[int], text: str, generate: bool = False) -> None:
        """Checks that rendered text holds all that its turns say.

        Raises:
            DataError: the template lost or repeated a medium, or lost a turn, a tool call or the tools.
        """
        for index in path:
            self._check_media(index, text)
            self._check_turn(path, index, text, generate)
        if self.conversation.tools and self._same(path, text, generate, tools=False):
            raise self._lost("the tools", "use a template that knows tools, or leave the tools out")

    def _write(self, messages: Sequence[Mapping[str, Any]], generate: bool, tools: bool = True) -> str:
        try:
            return self._template.render(
                messages,
                self._variables,
                tools=self.messages.tools if tools else (),
                generate=generate,
            )
        except DataError as error:
            raise DataError(f"{self.conversation.id}: {self.messages.shown(str(error))}") from error

    def _same(
        self,
        path: Sequence[int],
        text: str,
        generate: bool,
        changed: tuple[int, Mapping[str, Any]] | None = None,
        tools: bool = True,
    ) -> bool:
        """Whether the template writes the same with another message in place of one of the turns, or without tools."""
        messages: list[Mapping[str, Any]] = [self.messages[index] for index in path]
        if changed is not None:
            messages[path.index(changed[0])] = changed[1]
        try:
            return self._write(messages, generate, tools) == text
        except DataError:
            return False

    def _reply(self, path: Sequence[int], whole: str) -> Reply:
        turn = path[-1]
        if len(path) == 1:
            raise DataError(
                f"{self.conversation.id}: turn {turn} is the assistant's, and there is no turn before it to answer; "
                "give it a weight of 0, or put a user's turn before it"
            )
        prompt, full = self.render(path[:-1], generate=True), self.render(path)
        if not full.startswith(prompt):
            raise self._broken(turn, prompt, full)
        # Where several tokens end the last turn, fewer may end the others: Phi-3 writes its end of text once.
        for content, end in self._tokenizer.ends(full[len(prompt) :]):
            stop = len(prompt) + len(content)
            if whole.startswith(full[: stop + len(end)]):
                return Reply(turn, len(prompt), stop, end)
        raise self._broken(turn, full, whole)

    def _told_apart(self, shared: Sequence[int], path: Sequence[int], near: Sequence[int]) -> str:
        try:
            alone = self.render(shared)
        except DataError:
            return ""  # a template need not know what to do with half of a conversation
        one, other = self.render(path), self.render(near)
        kept = _alike(alone, one), _alike(alone, other)
        # The end of the last turn may change with what follows, as long as it does so in each branch.
        if _alike(one, other) >= max(kept):
            return ""
        return self._broken(shared[-1], alone, one if kept[0] < kept[1] else other).what

    def _show_reasoning(self, path: Sequence[int]) -> None:
        """Has the last turn's reasoning written: by the template, else as part of what the turn says."""
        reasoning = self.messages[path[-1]].get("reasoning_content")
        if reasoning is None:
            return
        other = {**self.messages[path[-1]], "reasoning_content": reasoning + "?"}
        if not self._same(path, self.render(path), False, (path[-1], other)):
            return
        self.messages.inline_reasoning(path[-1])
        self._rendered = {key: text for key, text in self._rendered.items() if path[-1] not in key[1]}
        if reasoning.strip() not in self.render(path):
            raise self._lost(
                f"the reasoning of turn {path[-1]}", "use a template that shows reasoning, or leave it out of the rows"
            )

    def _check_media(self, index: int, text: str) -> None:
        for char in self.messages[index]["media"]:
            count = text.count(char)
            if count != 1:
                raise DataError(
                    f"{self.conversation.id}: the chat template {self._template.name!r} writes "
                    f"{self.messages.shown(char)} of turn {index} {count} times instead of once; use another template"
                )

    def _check_turn(self, path: Sequence[int], index: int, text: str, generate: bool) -> None:
        message = self.messages[index]
        content = message["content"]
        # Beside media a template may leave text out: LLaVA's first stage does.
        if content.strip() not in text and not message["media"]:
            other = {**message, "content": content + "?"}
            if self._same(path, text, generate, (index, other)):
                raise self._lost(f"turn {index} ({message['role']})", "use another template, or leave the turn out")
        if "tool_calls" in message:
            calls = [
                {**call, "function": {**call["function"], "name": call["function"]["name"] + "?"}}
                for call in message["tool_calls"]
            ]
            if self._same(path, text, generate, (index, {**message, "tool_calls": calls})):
                raise self._lost(f"the tool calls of turn {index}", "use a template that knows tools")

    def _lost(self, what: str, way_out: str) -> DataError:
        return DataError(
            f"{self.conversation.id}: the chat template {self._template.name!r} leaves out {what}; {way_out}"
        )

    def _broken(self, turn: int, before: str, after: str) -> PrefixBroken:
        at = _alike(before, after)
        old, new = (repr(self.messages.shown(text[max(0, at - 20) : at + 40])) for text in (before, after))
        return PrefixBroken(
            f"{self.conversation.id}: the chat template {self._template.name!r} doesn't keep what it wrote at turn "
            f"{turn}: {old} becomes {new}",
            "In training its tokens would not be those of inference; use a variant of the template for training, or "
            "template_kwargs that turn thinking off",
        )


def _alike(one: Sequence[object], other: Sequence[object]) -> int:
    """Returns how many items two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
