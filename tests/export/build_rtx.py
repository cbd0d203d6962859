"""Builds ONNX graphs with TensorRT-RTX ahead of time, on the processor: ``python build_rtx.py GRAPH...``, a process of its own.

What the parser or the builder says of a graph that it does not take goes to stderr, with exit code 1. A built plan proves that a graph
parses, types and compiles; it says nothing of speed, or of what another GPU does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorrt_rtx as trt


def build(path: Path) -> int:
    """The size of the plan in bytes, or 0."""
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(path.read_bytes()):
        print(path, *(parser.get_error(i).desc() for i in range(parser.num_errors)), file=sys.stderr)
        return 0
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    image = network.get_input(0)
    shape = tuple(image.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, (1, *shape), (1, *shape), (4, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return 0 if plan is None else plan.nbytes


sizes = {path: build(Path(path)) for path in sys.argv[1:]}
print(sizes)
sys.exit(0 if all(sizes.values()) else 1)
