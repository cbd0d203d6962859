"""``lineside doctor --gpu-report``: tests and measures a machine with a GPU, and puts all results into one archive."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from edge.base.errors import InputError
from edge.base.finding import Finding

ROOT = Path(__file__).parents[2]
ANY = "flips=1,contrast=1,auroc=1,aupro=1"  # so that each precision can be timed; nothing is decided
DEMO = ROOT / "simulation" / "demo_bundle"


def steps(folder: Path, bundle: Path, cloth: Path) -> dict[str, list[str]]:
    """The commands, by name. folder: for results; bundle: a copy that they may change; cloth: for rendered parts."""
    good = ["--good", str(cloth / "test" / "good")]
    lineside = [sys.executable, "-m", "lineside"]
    return {
        "tests": [sys.executable, "-m", "pytest", "-m", "gpu", "tests", "--junitxml", str(folder / "tests.xml"), "-q",
                  "-rA"],
        "parts": [*lineside, "render", "woven", "--seed", "7", "--good", "300", "--test-good", "60", "--defective", "1",
                  "--out", str(cloth)],
        "threshold": [*lineside, "calibrate", str(bundle), *good, "--json"],
        "precisions": [*lineside, "quantize", str(bundle), *good, "--frames", "100", "--minutes", "0", "--limits", ANY,
                       "--json"],
        "engines": [*lineside, "engine", str(bundle), *good, "--layers", "--json"],
        "speed": [sys.executable, "benchmarks/precision.py", str(bundle), "--backend", "tensorrt", "--json"],
        "packages": [sys.executable, "-m", "pip", "freeze"],
    }


def write_gpu_report(out: Path, findings: Sequence[Finding]) -> Path:
    """Run the tests marked `gpu`, build the demo bundle's engines and time them; write all output to an archive in
    ``out``.

    Raises InputError without a GPU, or outside a checkout of the project with its tests.
    """
    lacking = [f"{finding.what}: {finding.text}" for finding in findings
               if finding.what in ("CUDA", "TensorRT", "PyCUDA") and finding.status == "missing"]
    if lacking:
        raise InputError("a GPU report needs a GPU with TensorRT and PyCUDA", got="; ".join(lacking),
                         next="`lineside doctor` says what to do.")
    if not (ROOT / "tests").is_dir() or not (ROOT / "benchmarks").is_dir():
        raise InputError("a GPU report needs the project's checkout", got=f"no tests or benchmarks beside {ROOT}",
                         next="Clone it, run `pip install -e '.[train,dev]'` there, then this command.")
    path = out / f"lineside-gpu-report-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"
    temporary = path.with_name(f".{path.name}.part")
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # fail now rather than after an hour of tests
    except OSError as error:
        raise InputError(f"cannot write into {out}", got=error.strerror, expected="a writable folder") from error
    console = Console(stderr=True)
    with contextlib.ExitStack() as ending, tempfile.TemporaryDirectory() as name:
        ending.callback(temporary.unlink, missing_ok=True)
        folder = Path(name)
        bundle, cloth = folder / "demo-bundle", folder / "cloth"
        shutil.copytree(DEMO, bundle)
        codes = {}
        environment = {**os.environ,
                       "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        for step, command in steps(folder, bundle, cloth).items():
            with console.status(f"{step} (a plan takes minutes the first time)"):
                start = time.monotonic()
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
            codes[step] = done.returncode
            (folder / f"{step}.txt").write_text(f"$ {' '.join(command)}\n{done.stdout}\n{done.stderr}")
            console.print(f"{step}: exit code {done.returncode} after {time.monotonic() - start:.0f} s",
                          highlight=False)
        record = {"machine": platform.uname()._asdict(), "python": sys.version, "exit_codes": codes,
                  "findings": [asdict(finding) for finding in findings]}
        (folder / "report.json").write_text(json.dumps(record, indent=1) + "\n")
        with tarfile.open(temporary, "w:gz") as archive:
            for file in sorted(folder.glob("*.*")):
                archive.add(file, f"{path.name.removesuffix('.tar.gz')}/{file.name}")
        temporary.replace(path)
    return path
