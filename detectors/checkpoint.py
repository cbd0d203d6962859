"""A checkpoint: the state of a stopped fit, in one file beside the run that it will write."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge.base.errors import InputError


@dataclass
class Checkpoint:
    """The state of a fit after ``phase_step`` steps of phase number ``phase`` (from 0)."""

    identity: dict[str, Any]  # the settings, network and images, by name
    phase: int = 0
    phase_step: int = 0
    started: bool = False  # whether the phase's ``start`` was called
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    def check(self, identity: dict[str, Any], out: Path) -> None:
        """Raise InputError, naming the difference, unless this fit has the same network, settings and images."""
        for name, now in identity.items():
            if self.identity.get(name) != now:
                raise InputError(f"the stopped fit of {out} had other settings: {name}", got=now,
                                 expected=self.identity.get(name),
                                 next="Give the same command with --resume, or another --out.")


def checkpoint_path(out: Path) -> Path:
    """The path of the checkpoint of the run ``out``."""
    return out.resolve().with_name(f"{out.resolve().name}.checkpoint")


def write_checkpoint(out: Path, state: Checkpoint) -> bool:
    """Write a checkpoint under a temporary name, then rename it. Returns False if the disk is full."""
    path = checkpoint_path(out)
    temporary = path.with_name(f".{path.name}.part")
    try:
        torch.save({item.name: getattr(state, item.name) for item in fields(state)}, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError):  # torch raises RuntimeError when the disk is full
        temporary.unlink(missing_ok=True)
        return False
    return True


def read_checkpoint(out: Path) -> Checkpoint:
    """Read the checkpoint of the run ``out``. Raises InputError if there is none or it is damaged."""
    path = checkpoint_path(out)
    if not path.is_file():
        raise InputError(f"there is no stopped fit of {out}", got=f"no {path.name} beside it",
                         expected="the checkpoint of a fit", next="Omit --resume to start one.")
    try:
        return Checkpoint(**torch.load(path, weights_only=True))
    except Exception as error:  # torch and pickle raise many types for a damaged file
        raise InputError(f"{path} is not a complete checkpoint", got=type(error).__name__,
                         expected="the file that `lineside fit` wrote", next="Remove it and fit again.") from error
