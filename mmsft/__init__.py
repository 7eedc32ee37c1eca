"""Instruction-tune a language model on text, images, or a modality of your own."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsft.adapters.spec import Adapter, Layout, Literal, Slots
    from mmsft.assistant import Assistant, ask, generate
    from mmsft.errors import DataError, MmsftError
    from mmsft.modalities.spec import Encoder, Features, File, Modality, Options
    from mmsft.run import Run, execute, load_run, open_run
    from mmsft.types import ROOT, Context, Conversation, Grid, Media, Record, Text, Turn

# Where each public name is; imported when it is first asked for (PEP 562), so that `mmsft --help` needs no torch.
_HOMES = {
    "mmsft.adapters.spec": ("Adapter", "Layout", "Literal", "Slots"),
    "mmsft.assistant": ("Assistant", "ask", "generate"),
    "mmsft.errors": ("DataError", "MmsftError"),
    "mmsft.modalities.spec": ("Encoder", "Features", "File", "Modality", "Options"),
    "mmsft.run": ("Run", "execute", "load_run", "open_run"),
    "mmsft.types": ("ROOT", "Context", "Conversation", "Grid", "Media", "Record", "Text", "Turn"),
}

__all__ = [
    "ROOT",
    "Adapter",
    "Assistant",
    "Context",
    "Conversation",
    "DataError",
    "Encoder",
    "Features",
    "File",
    "Grid",
    "Layout",
    "Literal",
    "Media",
    "MmsftError",
    "Modality",
    "Options",
    "Record",
    "Run",
    "Slots",
    "Text",
    "Turn",
    "ask",
    "execute",
    "generate",
    "load_run",
    "open_run",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'mmsft' has no attribute {name!r}")
