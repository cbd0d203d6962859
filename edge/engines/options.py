"""Command-line options for precision and backend, shared by the commands of several folders."""

from __future__ import annotations

from typing import Annotated

import typer

from edge.engines.backends import BACKEND_HELP

PRECISION = Annotated[str, typer.Option(metavar="fp32|bf16|fp16|int8|auto",
                                        help="One that passed the gate of `lineside quantize`; auto: the fastest of "
                                             "these.")]
BACKEND = Annotated[str, typer.Option(metavar="BACKEND", help=BACKEND_HELP)]
