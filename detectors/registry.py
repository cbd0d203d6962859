"""The detectors by name. A detector is a ``torch.nn.Module`` whose ``forward`` is the deployable graph.

Beside that, the fit loop and the export need of its class:

- ``channels`` of the input image, ``stride`` (image sides are multiples of it), ``post_filter`` in decision.toml's words;
- ``backbone``: the paper's ImageNet network by its name in `detectors.backbones`, or None; where there is one, ``use_backbone(backbone)``
  takes it before the first phase, and a constructor argument ``backbone`` (if there is one) gets the name of the one used;
- ``presets``: "paper" and "edge", each with ``size`` and ``width``; ``ablations``: constructor arguments by name of what they leave out;
- all constructor arguments with defaults, ``width`` among them, and ``size`` where the layers depend on it;
- ``phases(size)``: what the fit loop does (`detectors.phases`);
- ``make_defects(image, rng, natural)``: a defective image and its mask from a good one, float32 ``[H, W, C]`` and ``[H, W, 1]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edge.prepare import InputError

NAMES = ("ndp-net", "fim-net", "sidn", "local-occ", "aw-ssim")
BUILT = {"sidn": ("detectors.sidn", "Sidn")}


def detector_class(name: str) -> Any:
    """The class of the detector called ``name``. Raises InputError for a name that is unknown or not built yet."""
    if name not in BUILT:
        what = f"detector {name!r} is not in this version yet" if name in NAMES else f"there is no detector {name!r}"
        raise InputError(what, expected="one of " + ", ".join(BUILT), next="Run `lineside fit --help`.")
    module, cls = BUILT[name]
    return getattr(import_module(module), cls)
