"""The detectors by name. A detector is a ``torch.nn.Module`` whose ``forward`` is the deployable graph.

Beside that, the fit loop and the export need of its class:

- ``channels`` of the input image, ``stride`` (image sides are multiples of it), ``post_filter`` in decision.toml's words;
- ``backbone``: the paper's ImageNet network by its name in `detectors.backbones`, or None; where there is one, ``use_backbone(backbone)``
  takes it before the first phase, and a constructor argument ``backbone`` (if there is one) gets the name of the one used;
- ``presets``: "paper" and "edge", each with ``size``, ``width`` and other constructor arguments; ``ablations``: constructor arguments by
  name of what they leave out;
- all constructor arguments with defaults, ``width`` among them, and ``size`` where the layers depend on it;
- ``phases(size)``: what the fit loop does (`detectors.phases`);
- ``settle(arguments, pixels)``, where constructor arguments depend on the good images: a class method that fills them in;
- ``finish(pixels)``, where the fitted network has yet to be measured on good images: called once after the last step, in evaluation mode;
- ``make_defects(image, rng, natural)``: a defective image and its mask from a good one, float32 ``[H, W, C]`` and ``[H, W, 1]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edge.base.errors import InputError

DETECTORS = {
    "ndp-net": ("detectors.ndp_net", "NdpNet"), "fim-net": ("detectors.fim_net", "FimNet"), "sidn": ("detectors.sidn", "Sidn"),
    "local-occ": ("detectors.local_occ", "LocalOcc"), "aw-ssim": ("detectors.aw_ssim", "AwSsim"),
}


def detector_class(name: str) -> Any:
    """The class of the detector called ``name``. Raises InputError for an unknown name."""
    if name not in DETECTORS:
        raise InputError(f"there is no detector {name!r}", expected="one of " + ", ".join(DETECTORS), next="Run `lineside fit --help`.")
    module, cls = DETECTORS[name]
    return getattr(import_module(module), cls)
