"""One peer of `peers.py`, in its own process and virtual environment: python peer_worker.py JOB.json

It loads its network and the frames and prints that it is ready. For each line ``N`` on standard input it scores N
frames, one after the other as in the peer's own examples, and prints the seconds that this took. The only import from
Lineside is the network, for PyTorch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Judge = Callable[[Any], float]  # a frame, uint8 [H, W, C] of the network's size -> its score


def eager(job: dict[str, Any]) -> Judge:
    """PyTorch as in the papers' code: no graph, one image at a time, float32."""
    import torch

    from detectors.registry import detector_class

    torch.set_num_threads(job["threads"])
    network = detector_class(job["detector"])(**job["arguments"])
    if job["weights"]:
        network.load_state_dict(torch.load(job["weights"], weights_only=True))
    network.eval()
    if job["peer"] == "torch.compile":
        network = torch.compile(network)

    def judge(frame: Any) -> float:
        with torch.inference_mode():
            image = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            return float(network(image).max())

    return judge


def onnxruntime_loop(job: dict[str, Any]) -> Judge:
    """ONNX Runtime with its defaults, in a plain loop."""
    import onnxruntime

    session = onnxruntime.InferenceSession(job["graph"], providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda frame: float(session.run(None, {name: frame[None]})[0].max())


def model_api(job: dict[str, Any]) -> Judge:
    """OpenVINO's Model API, its wrapper for anomaly detection."""
    from model_api.models import AnomalyDetection

    labels = {"labels": ["Normal", "Anomaly"]}
    model = AnomalyDetection.create_model(job["peer_graph"], device="CPU", configuration=labels)
    return lambda frame: float(model(frame).pred_score)


def anomalib(job: dict[str, Any]) -> Judge:
    """anomalib's inferencer for OpenVINO."""
    import torch

    # torchvision lacks these operators if its build does not match torch. They are not used here.
    missing = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        missing.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from anomalib.deploy import OpenVINOInferencer

    config = {"INFERENCE_PRECISION_HINT": "f32"} if job["peer"] == "anomalib f32" else None
    model = OpenVINOInferencer(job["peer_graph"], device="CPU", config=config)
    return lambda frame: float(model.predict(frame).pred_score.max())


PEERS: dict[str, Callable[[dict[str, Any]], Judge]] = {
    "eager PyTorch": eager, "torch.compile": eager, "ONNX Runtime": onnxruntime_loop, "Model API": model_api,
    "anomalib": anomalib, "anomalib f32": anomalib}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    frames = list(np.load(job["frames"]))
    judge = PEERS[job["peer"]](job)
    if job["peer"] in ("Model API", "anomalib", "anomalib f32"):  # they accept only colour images
        frames = [np.repeat(frame, 3 // frame.shape[2], axis=2) for frame in frames]
    scores = [judge(frame) for frame in frames]
    print(json.dumps({"ready": True, "scores": scores[:4]}), flush=True)
    for line in sys.stdin:
        count, start = int(line), time.perf_counter()
        for number in range(count):
            judge(frames[number % len(frames)])
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
