"""The command line: parses, calls, prints. What is heavy is imported inside the commands."""

import json
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsft.errors import MmsftError
from mmsft.noise import quiet_libraries

if TYPE_CHECKING:
    from mmsft.types import Media

app = typer.Typer(
    help="Instruction-tune a language model on text, images, or a modality of your own.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich would take a third of the time that --help has
    context_settings={"max_content_width": 120},
    pretty_exceptions_enable=False,
    epilog="An error is a message and an exit code; with --debug, its traceback too.",
)
data_app = typer.Typer(help="Look at data.", no_args_is_help=True)
assets_app = typer.Typer(help="Real weights and data that install as packages.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(assets_app, name="assets")

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


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure where time and memory go; tables and a trace in OUT/profile.")
    ] = False,
) -> None:
    """Train the stages of a config. It goes on from the last checkpoint if the run folder has one."""
    from mmsft.progress import show
    from mmsft.run import execute, load_run

    run = load_run(config, overrides or [])
    try:
        show(run, execute(run, profile=profile))
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None


@app.command()
def check(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Find what is wrong before training. Reads the config and the data, and builds the model."""
    from mmsft.run import load_run
    from mmsft.run.check import check as run_check

    report = run_check(load_run(config, overrides or []))
    _print(report.as_dict() if as_json else report.text())
    if not report.ok:
        raise typer.Exit(2)


@app.command()
def doctor(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prove that loss and gradient don't depend on how a step is computed. On the config's own first rows."""
    from mmsft.run import load_run
    from mmsft.run.doctor import doctor as run_doctor

    report = run_doctor(load_run(config, overrides or []), (lambda text: None) if as_json else typer.echo)
    _print(report.as_dict() if as_json else report.verdict())
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[str | None, typer.Option(help="Plan for GPUs instead, e.g. 8xA100-80G.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Don't run the largest micro-batch.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Read at most so many rows of each stage.")] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Tell what training will take. Tokens, memory by part and time; then it runs the largest micro-batch."""
    from mmsft.run import load_run
    from mmsft.run.plan import plan as run_plan

    planned = run_plan(load_run(config, overrides or []), gpus, tries=not dry, rows=rows)
    _print(planned.as_dict() if as_json else planned.text())
    if not planned.ok:
        raise typer.Exit(1)


@app.command()
def chat(
    run: RunFolder,
    question: Annotated[str | None, typer.Argument(help="Without one, a dialogue begins.")] = None,
    image: Images = None,
    media: MediaFiles = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    checkpoint: Which = "last",
    max_new_tokens: NewTokens = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token, more draws.")] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws, with a temperature.")] = None,
) -> None:
    """Ask a question, or talk. With pictures or other media."""
    from mmsft.run import open_run
    from mmsft.serve.chat import Dialogue

    attached = _media(image, media)
    dialogue = Dialogue(
        open_run(run, checkpoint), system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    for medium in attached:
        dialogue.attach(medium)
    if question is not None:
        _print(dialogue.say(question))
        return
    typer.echo("An empty line or Ctrl-D ends. /image FILE adds a picture to the next question; /new starts afresh.")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that isn't UTF-8 is an error of its own
    dialogue.talk(sys.stdin, typer.echo)


@app.command(name="eval")
def evaluate(
    run: RunFolder,
    rows: Annotated[
        int, typer.Option(min=1, help="Score at most so many held-out rows, drawn by the run's seed.")
    ] = 500,
    checkpoint: Which = "last",
    max_new_tokens: NewTokens = 32,
    blank: Annotated[bool, typer.Option("--blank", help="Replace every medium by a blank one.")] = False,
    shuffled: Annotated[bool, typer.Option("--shuffled", help="Give every row the media of another.")] = False,
    untrained: Annotated[bool, typer.Option("--untrained", help="Score the model before training.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score the answers on held-out rows. Exact match, overall and for each tag of the recipe."""
    from mmsft.assistant import swap_media
    from mmsft.eval.accuracy import accuracy
    from mmsft.eval.sensitivity import by_wording, sensitivity, told
    from mmsft.run import load_run, open_run
    from mmsft.run.open import held_out

    opened = load_run(run)
    drawn = held_out(opened, checkpoint, rows)
    conversations = list(drawn.rows)
    assistant = open_run(run, checkpoint, trained=not untrained)
    if shuffled:
        conversations = swap_media(conversations, opened.config.seed)
    score = accuracy(assistant.blind() if blank else assistant, conversations, max_new_tokens)
    wordings = by_wording(conversations, score.answers, drawn.sources)
    if as_json:
        values = {"accuracy": score.accuracy, "rows": len(score.answers), "lost": len(drawn.lost)}
        _print({**values, "by_tag": score.by_tag, "by_wording": wordings, "sensitivity": sensitivity(wordings)})
        return
    if drawn.lost:
        typer.echo(f"{len(drawn.lost)} rows lost: {drawn.lost[0]}")
    typer.echo(f"accuracy {score.accuracy:.1%} on {len(score.answers)} held-out rows")
    for tag, values in score.by_tag.items():
        for value, part in values.items():
            typer.echo(f"  {tag} {value}: {part:.1%}")
    for line in told(wordings):
        typer.echo(line)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; RUN/hf by default.", show_default=False)
    ] = None,
    to: Annotated[str, typer.Option(help="hf: a folder that transformers loads.")] = "hf",
    checkpoint: Which = "last",
    as_json: AsJson = False,
) -> None:
    """Write a folder for transformers. LoRA is merged, and its logits are compared with ours on rows of the run."""
    from mmsft.errors import ConfigError
    from mmsft.run.open import export_run

    if to != "hf":
        raise ConfigError(f"--to {to!r}: there is only hf")
    done = export_run(run, out or run / to, checkpoint)
    if as_json:
        values = {"out": str(done.folder), "layout": done.layout, "rows": done.rows}
        _print({**values, "max_logit_difference": done.max_logit_difference, "max_logit": done.max_logit})
        return
    typer.echo(
        f"{done.folder}: {done.layout}; largest difference of logits on {done.rows} rows "
        f"{done.max_logit_difference:.1e} (largest logit {done.max_logit:.3g})"
    )


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
        _write(html, rows_page(data, drawn, facts(run, stage, drawn)))
        return
    shown = show_rows(run, stage, start, rows)
    if as_json:
        _print({"rows": [row.as_dict() for row in shown]})
        return
    for row in shown:
        _print(row.text())


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
    _print(found.as_dict() if as_json else found.text())
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
        _write(html, stats_page(data, [found.as_dict()], lengths, limit, [reading(run, stage)]))
        return
    _print(found.as_dict() if as_json else "\n".join(found.lines()))


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
        _print({"out": str(out), "parts": [asdict(part) for part in built]})
        return
    for part in built:
        typer.echo(f"{out}: {part.rows:,} rows of {part.part} in {len(part.shards):,} shards, {part.lost:,} lost")


@assets_app.command(name="fetch")
def assets_fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Assets, or configs and recipes that name some; those of demo and tests by default."),
    ] = None,
) -> None:
    """Fetch assets into the cache folder. They are downloaded, verified and unpacked."""
    from mmsft import assets

    assets.fetch(*(names or ()), log=typer.echo)


@assets_app.command(name="list")
def assets_list(as_json: AsJson = False) -> None:
    """List the assets. What they hold, their size and licence, and which are here."""
    from mmsft import assets

    told = [
        {"name": name, "here": assets.asset_folder(name).is_dir(), "megabytes": it.megabytes, "holds": it.holds,
         "licence": it.licence}
        for name, it in assets.ASSETS.items()
    ]  # fmt: skip
    if as_json:
        _print({"assets": told})
        return
    for one in told:
        here = "here" if one["here"] else f"{one['megabytes']} MB"
        typer.echo(f"{one['name']:<22} {here:>7}  {one['holds']}; {one['licence']}")


def _print(value: Any) -> None:
    """Prints text as it is, anything else as JSON."""
    typer.echo(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _write(file: Path, text: str) -> None:
    from mmsft.errors import ConfigError

    try:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{file}: can't be written: {error.strerror}") from None
    typer.echo(str(file))


def _media(images: list[Path] | None, media: list[str] | None) -> "tuple[Media, ...]":
    from mmsft.errors import ConfigError
    from mmsft.types import Media

    found = [Media("image", str(path)) for path in images or []]
    for text in media or []:
        modality, _, file = text.partition("=")
        if not modality or not file:
            raise ConfigError(f"--media {text!r}: write MODALITY=FILE, e.g. tactile=touch.npy")
        found.append(Media(modality, file))
    return tuple(found)


def main() -> None:
    """Runs the command line; an `MmsftError` becomes its message and exit code, without a traceback."""
    # What a config names as my_pkg.module:Class may lie in the working directory, as for `python -m`; what is installed
    # comes first.
    sys.path.append(os.getcwd())
    debug = "--debug" in sys.argv
    if not debug:
        quiet_libraries()
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app(standalone_mode=True)
    except MmsftError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
