"""The project's own error types. A command prints their text and ends with exit code 2."""

from __future__ import annotations

EXIT_ENGINE_LOST = 3  # of `lineside run`; a supervisor starts it again


class LinesideError(Exception):
    """A condition that the user can mend; its text is the whole message.

    The text says what is wrong, what was got, what was expected, and what to run next.
    """

    exit_code = 2

    def __init__(self, what: str, *, got: object = None, expected: object = None, next: str | None = None) -> None:
        parts = [what.rstrip(".")]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        text = "; ".join(parts) + "."
        super().__init__(f"{text} {next}" if next else text)


class InputError(LinesideError):
    """Images, folders or options that cannot be used."""


class BundleError(LinesideError):
    """A bundle that is missing, damaged, or does not fit what is asked of it."""


class EngineError(LinesideError):
    """An engine that cannot be built, or an inference that failed."""


class EngineLostError(EngineError):
    """A GPU whose error stays with the process: the runtime must end, and be started again. Its exit code is ``EXIT_ENGINE_LOST``."""

    exit_code = EXIT_ENGINE_LOST


class LinkError(LinesideError):
    """A PLC port that cannot be opened or was lost."""


class CameraError(LinesideError):
    """A camera that cannot be opened or was lost, or a frame that it could not deliver."""
