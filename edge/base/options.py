"""Options that commands of several folders share."""

from __future__ import annotations

from typing import Annotated

import typer

PRECISION = Annotated[str, typer.Option(metavar="fp32|bf16|fp16|int8|auto",
                                        help="One that passed the gate of `lineside quantize`; "
                                        "auto: the fastest of these.")]
BACKEND = Annotated[str, typer.Option(metavar="BACKEND",
                                      help="openvino, onnxruntime, onnxruntime-cuda or onnxruntime-tensorrt; auto: the "
                                      "best that is installed.")]
