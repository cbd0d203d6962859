"""Optional packages, checked by the commands that need them."""

from __future__ import annotations

from importlib.util import find_spec

from edge.base.errors import InputError


def need(extra: str, *packages: str) -> None:
    """Raise InputError with the command to run unless all ``packages`` of an extra are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError("this command needs packages that are not installed", got="no " + ", ".join(missing),
                         next=f"Run `pip install 'lineside[{extra}]'`.")
