"""Builds ONNX graphs with TensorRT-RTX ahead of time, on the processor, by our own builder: ``python build_rtx.py
GRAPH...``

Runs in a process of its own. Prints JSON, by graph: how many layers there are of each type and output dtype, the dtypes
of input and output, and the size of the plan. The parser's or builder's reason to refuse a graph goes to stderr, with
exit code 1. A plan proves that the graph parses, has consistent types and compiles for each compute capability. It says
nothing about speed or about what a GPU computes.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import tensorrt_rtx as trt

from edge.base.errors import EngineError
from edge.engines.gpu import make_logger
from export.tensorrt import build_plan, parse_graph

CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
BATCH = tuple(int(n) for n in os.environ.get("RTX_BATCH", "1:1:4").split(":"))


def look_at(graph: Path) -> dict[str, object]:
    """Layers and dtypes of the network that the parser makes."""
    log = make_logger(trt)
    builder = trt.Builder(log)
    network, _parser = parse_graph(trt, builder, graph, log)
    layers: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            layers[f"{layer.type.name} {layer.get_output(output).dtype.name}"] += 1
    return {"layers": layers, "input": network.get_input(0).dtype.name, "output": network.get_output(0).dtype.name}


def build(graph: Path) -> int:
    """The size in bytes of a plan for all compute capabilities."""
    def configure(config) -> None:
        config.num_compute_capabilities = len(CAPABILITIES)
        for index, capability in enumerate(CAPABILITIES):
            config.set_compute_capability(getattr(trt.ComputeCapability, capability), index)

    return len(build_plan(trt, graph, BATCH, workspace_mb=1024, configure=configure))


try:
    print(json.dumps({name: {**look_at(Path(name)), "bytes": build(Path(name))} for name in sys.argv[1:]}))
except EngineError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
