"""Progress bars on stderr, so that stdout carries only results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback ``(done, total)`` that moves a bar. Nothing is shown if stderr is not a terminal."""
    with progress_bars() as show:
        yield lambda done, total: show(title, done, total)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Like `progress_bar`, with several bars: a callback ``(title, done, total)`` moves the bar with that title."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=None)
            bars.update(tasks[title], completed=done, total=total)

        yield show
