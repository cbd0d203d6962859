"""The detectors by name, one line each: ``module:Class``, a subclass of `detectors.detector.Detector`.

A module is imported only when its detector is asked for, so that ``lineside fit --help`` starts without torch.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from edge.base.errors import InputError

if TYPE_CHECKING:
    from detectors.detector import Detector

DETECTORS = {
    "ndp-net": "detectors.ndp_net:NdpNet",
    "fim-net": "detectors.fim_net:FimNet",
    "sidn": "detectors.sidn:Sidn",
    "local-occ": "detectors.local_occ:LocalOcc",
    "aw-ssim": "detectors.aw_ssim:AwSsim",
}


def detector_class(name: str) -> type[Detector]:
    """The class of the detector called ``name``. Raises InputError for an unknown name."""
    if name not in DETECTORS:
        raise InputError(f"there is no detector {name!r}", expected="one of " + ", ".join(DETECTORS),
                         next="Run `lineside fit --help`.")
    cls: type[Detector] = resolve_name(DETECTORS[name])
    return cls
