"""A dialogue with a model, turn by turn."""

from collections.abc import Callable, Iterable

from mmsft.assistant import Assistant, ask
from mmsft.errors import MmsftError
from mmsft.types import Media, Text, Turn


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
        self._waiting: list[Media] = []
        self.turns: tuple[Turn, ...] = self._system

    def attach(self, media: Media) -> None:
        """Puts a medium before the next question's text.

        Raises:
            DataError: it can't be read; the dialogue stays as it was.
        """
        self._waiting.append(self._assistant.read(media))

    def say(self, question: str) -> str:
        """Adds a question, with the media that wait for it, and returns the answer.

        Raises:
            MmsftError: it can't be answered; what was said before stays, the media don't wait any longer.
        """
        waiting, self._waiting = self._waiting, []
        conversation = ask(question, waiting, after=self.turns)
        [answer] = self._assistant.answers([conversation], **self._options)  # type: ignore[arg-type]
        self.turns = (*conversation.turns, Turn("assistant", (Text(answer),)))
        return answer

    def reset(self) -> None:
        """Forgets what was said and what waits."""
        self.turns = self._system
        self._waiting = []

    def talk(self, lines: Iterable[str], show: Callable[[str], None]) -> None:
        """Answers lines until an empty one.

        ``/image FILE`` (or ``/MODALITY FILE``) adds a medium to the next question, ``/new`` forgets what was said. What
        can't be done is said, and the dialogue goes on.
        """
        for line in lines:
            if not line.strip():
                return
            try:
                if (answer := self._answer(line.strip())) is not None:
                    show(answer)
            except MmsftError as error:
                show(f"error: {error}")

    def _answer(self, line: str) -> str | None:
        """Obeys a command, or answers a question."""
        command, _, rest = line.partition(" ")
        towers = self._assistant.reader.towers
        if line == "/new":
            self.reset()
        elif command.startswith("/") and command[1:] in towers:
            if not rest:
                return f"error: {command}: which file? write {command} FILE"
            self.attach(Media(command[1:], rest.strip()))
        elif command.startswith("/") and command[1:].isidentifier():
            commands = ", ".join(f"/{tower} FILE" for tower in towers) or "none: no towers"
            return (
                f"error: {command}: no such command; media of this model: {commands}; or /new, or an empty line to end"
            )
        else:
            return self.say(line)
        return None
