"""What several commands take, and how they print."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path, typer.Argument(help="A config file or a run folder.", show_default=False)]
Data = Annotated[str, typer.Argument(help="A recipe, a config file or a run folder.", show_default=False)]
OfStage = Annotated[str | None, typer.Option("--stage", help="The stage whose recipe is read; the first by default.")]
OfRecipe = Annotated[
    str | None, typer.Option("--tokenizer", help="A model whose tokenizer and template read a recipe by itself.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a page for a browser.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value …, e.g. seed=1 stages.align.duration='100 steps'")
]
RunFolder = Annotated[Path, typer.Argument(help="A folder that `mmsft train` made.", show_default=False)]
Which = Annotated[str, typer.Option("--checkpoint", help="last, best, or a checkpoint's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]
Images = Annotated[list[Path] | None, typer.Option("--image", help="A picture; may be given several times.")]
MediaFiles = Annotated[
    list[str] | None, typer.Option("--media", help="MODALITY=FILE for any tower; may be given several times.")
]


def tell(value: Any) -> None:
    """Prints text as it is, anything else as JSON."""
    typer.echo(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def write(file: Path, text: str) -> None:
    """Writes a page to a file, and prints where it is."""
    from mmsft.errors import ConfigError

    try:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{file}: can't be written: {error.strerror}") from None
    typer.echo(str(file))
