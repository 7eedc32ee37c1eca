"""Short ways to write rows and to read conversations back."""

from collections.abc import Mapping
from typing import Any

from mmsft.types import Conversation, Media, Text


def said(conversation: Conversation) -> list[tuple[str, list[str | tuple[str, str | bytes]]]]:
    """Returns each turn's role and parts: text as it is, a medium as (modality, file)."""
    return [
        (turn.role, [part.text if isinstance(part, Text) else (part.modality, part.ref) for part in turn.parts])
        for turn in conversation.turns
    ]


def media(conversation: Conversation) -> list[Media]:
    """Returns all media in order."""
    return [medium for turn in conversation.turns for medium in turn.media]


def chat(*turns: tuple[Any, Any], **columns: Any) -> Mapping[str, Any]:
    """Returns a row of `messages`."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **columns}


def talk(*turns: tuple[Any, Any], **columns: Any) -> Mapping[str, Any]:
    """Returns a row of `conversations`."""
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **columns}
