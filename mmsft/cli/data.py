"""`mmsft data`: looks at data without training."""

from pathlib import Path
from typing import Annotated

import typer

from mmsft.cli.options import AsJson, Data, Html, OfRecipe, OfStage, Overrides, tell, write

data_app = typer.Typer(help="Look at data.", no_args_is_help=True)


@data_app.command(name="show")
def data_show(
    data: Data,
    overrides: Overrides = None,
    stage: OfStage = None,
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    start: Annotated[int, typer.Option(min=0, help="The first, counted from 0, in the first epoch's order.")] = 0,
    tokenizer: OfRecipe = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Show rows as the model sees them. Tokens, what is learned and with which weight, media."""
    from mmsft.report.rows import rows_page
    from mmsft.run.drawn import drawn_rows, facts
    from mmsft.run.show import show_rows
    from mmsft.run.targets import load_target

    run = load_target(data, overrides or [], tokenizer)
    if html is not None:
        drawn = drawn_rows(run, stage, start, rows)
        write(html, rows_page(data, drawn, facts(run, stage, drawn)))
        return
    shown = show_rows(run, stage, start, rows)
    if as_json:
        tell({"rows": [row.as_dict() for row in shown]})
        return
    for row in shown:
        tell(row.text())


@data_app.command(name="check")
def data_check(
    data: Data,
    overrides: Overrides = None,
    headers: Annotated[bool, typer.Option("--headers", help="Don't decode media, read their headers only.")] = False,
    quarantine: Annotated[
        Path | None, typer.Option(help="Write the rows that are lost, for a recipe's `quarantine`.", show_default=False)
    ] = None,
    tokenizer: OfRecipe = None,
    as_json: AsJson = False,
) -> None:
    """Read all rows without training. What becomes of each, and whether training and serving agree."""
    from mmsft.run.audit import audit, write_quarantine
    from mmsft.run.targets import load_target

    run = load_target(data, overrides or [], tokenizer)
    found = audit(run, decode=not headers, tell=lambda line: typer.echo(line, err=True))
    if quarantine is not None:
        write_quarantine(found, quarantine)
    tell(found.as_dict() if as_json else found.text())
    if not found.ok:
        raise typer.Exit(2)


@data_app.command(name="stats")
def data_stats(
    data: Data,
    overrides: Overrides = None,
    stage: OfStage = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Read at most so many; all by default.")] = None,
    tokenizer: OfRecipe = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Count what rows are made of. Lengths, tokens by source and modality, duplicates, and how full packs get."""
    from mmsft.report.stats import stats_page
    from mmsft.run.drawn import reading
    from mmsft.run.show import stage_named
    from mmsft.run.stats import stats
    from mmsft.run.targets import load_target

    run = load_target(data, overrides or [], tokenizer)
    found = stats(run, stage_named(run, stage), rows)
    if html is not None:
        lengths = {source.name: source.lengths for source in found.sources}
        limit = stage_named(run, stage).recipe.length
        write(html, stats_page(data, [found.as_dict()], lengths, limit, [reading(run, stage)]))
        return
    tell(found.as_dict() if as_json else "\n".join(found.lines()))


@data_app.command(name="build")
def data_build(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder of the shards.", show_default=False)],
    overrides: Overrides = None,
    stage: OfStage = None,
    megabytes: Annotated[int, typer.Option(min=1, help="A shard's size.")] = 256,
    tokenizer: OfRecipe = None,
    as_json: AsJson = False,
) -> None:
    """Write a recipe's rows and media into WebDataset shards. A build that was stopped goes on."""
    from dataclasses import asdict

    from mmsft.data.shards import build
    from mmsft.run.show import stage_named
    from mmsft.run.targets import load_target

    run = load_target(data, overrides or [], tokenizer)
    mixture = run.mixture(stage_named(run, stage).recipe)
    parts = {"train": mixture.train, "held_out": mixture.held_out}
    built = [
        build(mixture, pairs, out, part, megabytes * 1_000_000, tell=lambda line: typer.echo(line, err=True))
        for part, pairs in parts.items()
        if len(pairs)
    ]
    if as_json:
        tell({"out": str(out), "parts": [asdict(part) for part in built]})
        return
    for part in built:
        typer.echo(f"{out}: {part.rows:,} rows of {part.part} in {len(part.shards):,} shards, {part.lost:,} lost")
