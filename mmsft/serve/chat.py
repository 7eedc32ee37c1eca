"""A dialogue with a model, turn by turn."""

from collections.abc import Callable, Iterable, Sequence

from mmsft.assistant import Assistant
from mmsft.errors import DataError
from mmsft.types import Conversation, Media, Text, Turn


class Dialogue:
    """Keeps what was said, so that every question has its history.

    Args:
        assistant: who answers.
        system: a system message.
        options: those of `Assistant.answers`.
    """

    def __init__(self, assistant: Assistant, system: str | None = None, **options: int | float | None) -> None:
        self._assistant = assistant
        self._system = (Turn("system", (Text(system),)),) if system else ()
        self._options = options
        self.turns: tuple[Turn, ...] = self._system

    def say(self, question: str, media: Sequence[Media] = ()) -> str:
        """Adds a question, with media before its text, and returns the answer.

        Raises:
            DataError: a medium can't be read; the dialogue stays as it was.
        """
        asked = (*self.turns, Turn("user", (*media, Text(question))))
        [answer] = self._assistant.answers([Conversation("dialogue", asked)], **self._options)  # type: ignore[arg-type]
        self.turns = (*asked, Turn("assistant", (Text(answer),)))
        return answer

    def reset(self) -> None:
        """Forgets what was said."""
        self.turns = self._system

    def talk(self, lines: Iterable[str], show: Callable[[str], None], media: Sequence[Media] = ()) -> None:
        """Answers lines until an empty one.

        ``/image FILE`` (or ``/MODALITY FILE``) adds a medium to the next question, ``/new`` forgets what was said.
        """
        waiting = list(media)
        for line in lines:
            text = line.strip()
            if not text:
                return
            command, _, rest = text.partition(" ")
            if command == "/new":
                self.reset()
            elif command.startswith("/") and rest and command[1:] in self._assistant.reader.towers:
                waiting.append(Media(command[1:], rest.strip()))
            elif command.startswith("/") and rest and command[1:].isidentifier():
                towers = ", ".join(f"/{tower} FILE" for tower in self._assistant.reader.towers) or "none: no towers"
                show(f"error: {command}: no such command; media of this model: {towers}; or /new")
            else:
                try:
                    show(self.say(text, waiting))
                except DataError as error:
                    show(f"error: {error}")
                waiting = []
