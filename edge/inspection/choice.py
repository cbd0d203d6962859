"""What a bundle runs with: its backend, precision and threshold."""

from __future__ import annotations

from dataclasses import dataclass

from edge.base.errors import EngineError
from edge.bundle.bundle import Bundle
from edge.engines.backends import all_backends, get_backend, processor_backend
from edge.engines.engine import Precision


@dataclass(frozen=True)
class Choice:
    """A bundle with the precision and the backend that it runs in."""

    bundle: Bundle
    precision: Precision
    backend: str

    @property
    def threshold(self) -> float:
        """The calibrated threshold. Raises BundleError if there is none, or if the rule was changed after it was
        calibrated.
        """
        return self.bundle.calibrated_threshold(self.precision, self.backend).value

    @property
    def threshold_if_any(self) -> float | None:
        """The same, but None if the bundle is not calibrated for this precision and backend."""
        found = self.bundle.threshold(self.precision, self.backend)
        return None if found is None else found.value


def choose(bundle: Bundle, precision: str = "fp32", backend: str = "auto", *, ungated: bool = False) -> Choice:
    """Choose the backend, then the precision on it. ``auto``: see `pick_backend` and `Bundle.choose`.

    ungated: also a precision that did not pass its gate. Raises InputError, EngineError or BundleError.
    """
    picked = pick_backend(bundle, backend, precision)
    return Choice(bundle, bundle.choose(precision, picked, ungated), picked)


def pick_backend(bundle: Bundle, name: str = "auto", precision: str = "fp32") -> str:
    """The name of the backend to use.

    ``auto`` is the first of the registry that may be picked automatically: one that needs plans (TensorRT) if `lineside
    engine` has built one of the precision (with precision ``auto``: of any that the bundle offers), otherwise the first
    one installed. Raises InputError for an unknown name, EngineError for a backend that is not installed.
    """
    if name == "auto":
        wanted = [(offered, bundle.graph_sha256(offered)) for offered in bundle.offered()
                  if precision in (offered, "auto")]
        for backend in all_backends():
            if backend.automatic and backend.needs_plan and any(backend.can_run(*graph) for graph in wanted):
                return backend.name
        return processor_backend()
    backend = get_backend(name)
    if not backend.installed():
        raise EngineError(f"{name} cannot run here", got=f"no package {backend.package}", expected="an installed one",
                          next=backend.install)
    return name
