"""The program `pyrocrl`, which commands register with."""

from __future__ import annotations

from typing import Annotated

import typer


class Interrupted(Exception):
    """Ctrl-C, with the line to say; typer would end a KeyboardInterrupt without one."""


app = typer.Typer(
    name="pyrocrl",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _version(asked: bool) -> None:
    if asked:
        import pyrocrl

        print(f"pyrocrl {pyrocrl.__version__}")
        raise typer.Exit()


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Causal representation learning as Pyro programs: posteriors over graphs, masks and factors, with a verdict."""
