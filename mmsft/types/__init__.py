"""The values that flow from a data row to a training step."""

from mmsft.types.batch import (
    Batch,
    BatchTargets,
    Context,
    Group,
    MediaBatch,
    MediaGroup,
    MediaUse,
    Pack,
    Prompts,
    Stored,
)
from mmsft.types.conversation import PREVIOUS, ROOT, Conversation, Media, Part, Record, Role, Text, ToolCall, Turn
from mmsft.types.encoded import Encoded, Floats, Grid, Ints, Placed, Segment, Targets, subtree_ends

__all__ = [
    "PREVIOUS",
    "ROOT",
    "Batch",
    "BatchTargets",
    "Context",
    "Conversation",
    "Encoded",
    "Floats",
    "Grid",
    "Group",
    "Ints",
    "Media",
    "MediaBatch",
    "MediaGroup",
    "MediaUse",
    "Pack",
    "Part",
    "Placed",
    "Prompts",
    "Record",
    "Role",
    "Segment",
    "Stored",
    "Targets",
    "Text",
    "ToolCall",
    "Turn",
    "subtree_ends",
]
