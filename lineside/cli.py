"""The console script ``lineside``: one Typer app per folder, mounted side by side.

Heavy imports happen inside the commands, so that ``lineside --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from calib.cli import app as calib
from detectors.cli import app as detectors
from edge.base.errors import EngineLostError, LinesideError
from edge.cli import app as edge
from export.cli import app as export
from lineside import __version__
from simulation.cli import app as simulation

app = typer.Typer(
    help="Inspect surfaces on a production line: fit on good images, export, calibrate, run.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)
for part in (detectors, export, calib, edge, simulation):
    app.add_typer(part)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"lineside {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True,
                                          help="Print the version and exit.")] = False,
) -> None:
    return


def main() -> None:
    """Run the command line. An error that the user can fix becomes one message on stderr and exit code 2."""
    try:
        app()
    except LinesideError as error:
        print(f"lineside: {error}", file=sys.stderr)
        if isinstance(error, EngineLostError):  # a normal exit would abort, because PyCUDA cannot free its memory
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except OSError as error:  # a file that cannot be read or written
        if error.filename is None:
            raise
        print(f"lineside: cannot use {error.filename}; got {error.strerror}.", file=sys.stderr)
        sys.exit(2)

