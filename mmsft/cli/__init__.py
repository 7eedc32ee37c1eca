"""The command line: parses, calls, prints. What is heavy is imported inside the commands."""

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsft.cli.assets import assets_app
from mmsft.cli.data import data_app
from mmsft.cli.options import AsJson, Config, Images, MediaFiles, NewTokens, Overrides, RunFolder, Which, tell
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
app.add_typer(data_app, name="data")
app.add_typer(assets_app, name="assets")


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
    tell(report.as_dict() if as_json else report.text())
    if not report.ok:
        raise typer.Exit(2)


@app.command()
def doctor(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prove that loss and gradient don't depend on how a step is computed. On the config's own first rows."""
    from mmsft.run import load_run
    from mmsft.run.doctor import doctor as run_doctor

    report = run_doctor(load_run(config, overrides or []), (lambda text: None) if as_json else typer.echo)
    tell(report.as_dict() if as_json else report.verdict())
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
    tell(planned.as_dict() if as_json else planned.text())
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
        tell(dialogue.say(question))
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
        tell({**values, "by_tag": score.by_tag, "by_wording": wordings, "sensitivity": sensitivity(wordings)})
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
        tell({**values, "max_logit_difference": done.max_logit_difference, "max_logit": done.max_logit})
        return
    typer.echo(
        f"{done.folder}: {done.layout}; largest difference of logits on {done.rows} rows "
        f"{done.max_logit_difference:.1e} (largest logit {done.max_logit:.3g})"
    )


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
