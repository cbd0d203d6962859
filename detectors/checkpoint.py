"""A checkpoint: what a fit needs to go on after a stop, in one file beside the run that it will write."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge.base.errors import InputError


@dataclass
class Checkpoint:
    """Where a fit stands: after ``phase_step`` steps of its phase number ``phase``."""

    identity: dict[str, Any]  # what is fitted on what, by name
    phase: int = 0
    phase_step: int = 0
    started: bool = False  # whether the phase's ``start`` was called
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    def check(self, identity: dict[str, Any], out: Path) -> None:
        """Raise InputError, naming what differs, unless this is a fit of the same network on the same images."""
        for name, now in identity.items():
            if self.identity.get(name) != now:
                raise InputError(f"the stopped fit of {out} had other settings: {name}", got=now, expected=self.identity.get(name),
                                 next="Give the same command with --resume, or another --out.")


def checkpoint_path(out: Path) -> Path:
    """Where the checkpoint of the run ``out`` lies."""
    return out.resolve().with_name(f"{out.resolve().name}.checkpoint")


def write_checkpoint(out: Path, state: Checkpoint) -> bool:
    """Write a checkpoint under a temporary name, then rename it. Returns whether there was room for it: a fit goes on without."""
    path = checkpoint_path(out)
    temporary = path.with_name(f".{path.name}.part")
    try:
        torch.save({item.name: getattr(state, item.name) for item in fields(state)}, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError):  # torch makes a RuntimeError of a full disk
        temporary.unlink(missing_ok=True)
        return False
    return True


def read_checkpoint(out: Path) -> Checkpoint:
    """The checkpoint of the run ``out``. Raises InputError where there is none, or it is damaged."""
    path = checkpoint_path(out)
    if not path.is_file():
        raise InputError(f"there is no stopped fit of {out}", got=f"no {path.name} beside it", expected="the checkpoint of a fit",
                         next="Leave --resume out to begin one.")
    try:
        return Checkpoint(**torch.load(path, weights_only=True))
    except Exception as error:  # whatever a damaged file makes torch or pickle raise
        raise InputError(f"{path} is not a whole checkpoint", got=type(error).__name__, expected="what `lineside fit` wrote",
                         next="Remove it and fit again.") from error
