"""Short ways to write conversations, and to read what is learned of them."""

from mmsft.adapters.spec import Layout, Literal, Slots
from mmsft.data.chat import ChatEncoder
from mmsft.data.messages import guard
from mmsft.data.script import Script
from mmsft.data.tokens import Tokenizer
from mmsft.types import Conversation, Encoded, Media, Part, Text, Turn

CAT = Media("image", "cat.png")
DOG = Media("image", "dog.png")

FORGETFUL = """{% for m in messages %}<|im_start|>{{ m.role + '\n' }}
{%- if loop.last and m.role == 'assistant' %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{- m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""A template that drops thinking from all turns but the last."""


def parts(*said: str | Media) -> tuple[Part, ...]:
    return tuple(Text(part) if isinstance(part, str) else part for part in said)


def user(*said: str | Media) -> Turn:
    return Turn("user", parts(*said))


def assistant(*said: str | Media, weight: float = 1.0, reasoning: str | None = None) -> Turn:
    return Turn("assistant", parts(*said), weight=weight, reasoning=reasoning)


def system(said: str) -> Turn:
    return Turn("system", parts(said))


def conversation(*turns: Turn) -> Conversation:
    return Conversation("rows.jsonl:7", turns)


def dialogue(rounds: int) -> Conversation:
    return conversation(*(turn for i in range(rounds) for turn in (user(f"ask {i}"), assistant(f"reply {i}"))))


def three_slots(media: Media) -> Layout:
    return (Slots(3),)


def framed(media: Media) -> Layout:
    return (Literal("0s<|im_end|>"), Slots(2), Literal("1s"), Slots(2))


def learned(encoder: ChatEncoder, encoded: Encoded) -> str:
    return encoder.tokenizer.decode(encoded.targets.token.tolist())


def written(encoder: ChatEncoder, conversation: Conversation) -> str:
    """A chain as the template writes it."""
    script = Script(conversation, encoder.template, guard(encoder.tokenizer), encoder.template_kwargs)
    return script.messages.shown(script.render(conversation.threads()[0]))


def controls(tokenizer: Tokenizer, encoded: Encoded) -> list[str]:
    """The control tokens of a chain, in order; slots don't count."""
    slots = {int(slot) for placed in encoded.media for slot in placed.slots}
    added = tokenizer.hf.added_tokens_decoder
    ids = encoded.input_ids.tolist()
    return [added[id].content for index, id in enumerate(ids) if id in added and index not in slots]
