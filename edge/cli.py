"""The commands of ``edge/``, mounted side by side; each folder's are in its own ``cli.py``."""

from __future__ import annotations

import typer

from edge.inspection.cli import app as inspection
from edge.record.cli import app as record
from edge.run.cli import app as run
from edge.tools.camera_test.cli import app as cameras
from edge.tools.cli import app as tools

app = typer.Typer()
for folder in (inspection, run, tools, cameras, record):
    app.add_typer(folder)
