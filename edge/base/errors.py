"""The project's own error types. A command prints their text and ends with exit code 2."""

from __future__ import annotations

EXIT_ENGINE_LOST = 3  # of `lineside run`; its supervisor restarts it


class LinesideError(Exception):
    """A problem that the user can fix. Its text is the whole message that a command prints.

    The text says what is wrong, what was found, what was expected, and what to run next.
    """

    exit_code = 2

    def __init__(self, what: str, *, got: object = None, expected: object = None, next: str | None = None) -> None:
        parts = [what.rstrip(".")]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        text = "; ".join(parts)
        text += "" if text.endswith("?") else "."  # a hint may be a question
        super().__init__(f"{text} {next}" if next else text)


class InputError(LinesideError):
    """Images, folders or options that cannot be used."""


class BundleError(LinesideError):
    """A bundle that is missing, damaged, or cannot do what is asked of it."""


class EngineError(LinesideError):
    """An engine that cannot be built, or an inference that failed."""


class EngineLostError(EngineError):
    """A GPU error that only a restart of the runtime clears. Exit code ``EXIT_ENGINE_LOST``."""

    exit_code = EXIT_ENGINE_LOST


class LinkError(LinesideError):
    """A PLC port that cannot be opened, or was lost."""


class CameraError(LinesideError):
    """A camera that cannot be opened or was lost, or a frame that it failed to deliver."""
