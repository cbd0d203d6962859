#!/usr/bin/env python3
"""Fit, export and evaluate detectors on sets of images, and write one table as Markdown and JSON, with pictures.

Each fit runs in its own process and has a folder in FILE.work. After a stop, run the same command again: finished jobs
are kept, and the stopped fit resumes from its checkpoint. Exit code 1 if a detector failed on a set, 130 if the command
was interrupted.

    benchmarks/accuracy.py --data leather magnetic_tile --detectors all --minutes 10 --out accuracy.md
    benchmarks/accuracy.py --data leather --detectors sidn,fim-net --minutes 10 --ablations --out ablations.md
    benchmarks/accuracy.py --data turned --detectors local-occ --minutes 10 --ablations "without IMM" --out imm.md
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from accuracy_job import Job, Tell, fingerprint, sources, work
from montage import FULL, Heat, build_report, draw_montage, label, pick, show, write_report
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from calib.metrics import labelled_images
from detectors.backbones import BACKBONES
from detectors.fit import Budget, Settings, network_arguments
from detectors.natural import MOST
from detectors.registry import DETECTORS, detector_class
from edge.base.errors import InputError, LinesideError
from edge.images.files import good_folder, list_images

PRELOAD = [  # imported once for all jobs
    "detectors.fit", "export.onnx", "calib.metrics", "torch._dynamo", "onnxscript", "sklearn.metrics", "pyaupro",
    "matplotlib.figure",
]


class Stop:
    """Handles SIGINT and SIGTERM: the first stops the running job after its step, the second kills it at once.

    A killed job resumes from its last checkpoint.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.asked = 0
        self.process: Any = None

    def __call__(self, *_: object) -> None:
        self.asked += 1
        self.console.print("stopping after this step" if self.asked == 1 else "stopping at once")
        if self.process is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM if self.asked == 1 else signal.SIGKILL)


def run_job(job: Job, code: str, stop: Stop, tell: Tell) -> str | None:
    """Run a job in its own process. Returns the error, or None."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    here, there = context.Pipe(duplex=False)
    stop.process = context.Process(target=work, args=(job, code, there))
    stop.process.start()
    there.close()
    if stop.asked:  # the signal came before the process existed
        stop.process.terminate()
    try:
        while isinstance(message := here.recv(), tuple):
            tell(*message)
    except EOFError:
        stop.process.join()
        message = f"the process ended with exit code {stop.process.exitcode}, see {job.folder.name}/log.txt"
        if stop.process.exitcode == -signal.SIGKILL:
            message = "the process was killed, perhaps because memory ran out"
    stop.process.join()
    return message


def run_jobs(jobs: list[Job], code: str, stop: Stop, console: Console,
             done: Callable[[dict[Path, str]], object]) -> dict[Path, str]:
    """Run all jobs without a result, and show the progress. Returns the errors by job folder.

    done: called after each job with the errors so far.
    """
    errors: dict[Path, str] = {}
    waiting = [job for job in jobs if job.result() is None]
    console.print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} of them done already")
    seconds: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(),
               TextColumn("{task.percentage:>3.0f} %, {task.fields[left]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, left="")
        for number, job in enumerate(waiting, 1):
            start, next_line = time.monotonic(), [0.0]

            def tell(what: str, share: float, left: float, number: int = number, job: Job = job,
                     next_line: list[float] = next_line) -> None:
                usual = sum(seconds) / len(seconds) if seconds else 60 * (job.budget.minutes or 0)
                text = f"job {number} of {len(waiting)}: {job.title}: {what}"
                all_left = "" if not usual else f", {(left + (len(waiting) - number) * usual) / 60:.0f} min for all"
                bar.update(task, completed=share, description=text, left=f"{left:.0f} s left{all_left}")
                if not console.is_terminal and share >= next_line[0]:  # a log file gets lines instead of a bar
                    console.print(f"{text}; {left:.0f} s left{all_left}", soft_wrap=True)
                    next_line[0] += 0.25
            if stop.asked:
                break
            error = run_job(job, code, stop, tell)
            if error is not None and not stop.asked:
                errors[job.folder] = error
                console.print(f"{job.title} failed: {error}", style="red", soft_wrap=True)
            seconds.append(time.monotonic() - start)
            done(errors)
    return errors


# --- The command ---


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="sets in MVTec AD layout")
    parser.add_argument("--detectors", nargs="+", required=True, metavar="NAME",
                        help=f"all, or some of {', '.join(DETECTORS)}")
    parser.add_argument("--minutes", type=float, help="duration of each fit")
    parser.add_argument("--steps", type=int, help="number of steps of each fit, instead of minutes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help="the Markdown file to write; JSON and pictures are written beside it")
    parser.add_argument("--ablations", nargs="*", metavar="NAME",
                        help="also fit each detector without each of its parts, or only without the named parts")
    parser.add_argument("--preset", default="edge")
    parser.add_argument("--size", type=int, help="side of the network's input in px; default: the preset's")
    parser.add_argument("--width", type=int, help="channels of the network's first stage; default: the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone-weights", nargs="+", default=[], metavar="NAME=FILE",
                        help="state dicts of the papers' backbones, NAME one of "
                             f"{', '.join(list(BACKBONES)[1:])}; or one FILE for all")
    parser.add_argument("--natural-images", type=Path, metavar="DIR", help="photographs for artificial defects")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args(arguments)


def plan(given: argparse.Namespace) -> list[Job]:
    """The jobs for the options, full detectors before ablations. Raises InputError for unusable options or folders."""
    if given.out.suffix == ".json" or given.out.is_dir():
        raise InputError("--out is the Markdown file", got=given.out, expected="a name such as accuracy.md")
    budget = Budget(given.minutes, given.steps)
    names = [name for word in given.detectors for name in word.split(",") if name]
    names = list(dict.fromkeys(DETECTORS if "all" in names else names))
    parts = {part for name in names if name in DETECTORS for part in detector_class(name).ablations}
    wanted = set() if given.ablations is None else set(given.ablations) or parts
    if not wanted <= parts:
        raise InputError("there is no such ablation", got=", ".join(sorted(wanted - parts)),
                         expected="some of " + ", ".join(sorted(parts)))
    sets = [data.resolve() for data in given.data]
    if len({data.name for data in sets}) < len(sets):
        raise InputError("two sets have the same name", got=", ".join(data.name for data in sets),
                         expected="a different name for each set")
    weights = dict(word.split("=", 1) if word.split("=")[0] in BACKBONES else ("", word)
                   for word in given.backbone_weights)
    for file in weights.values():
        if not Path(file).is_file():
            raise InputError(f"no backbone weights at {file}", expected="a state dict's file, or NAME=FILE")
    natural = given.natural_images and given.natural_images.resolve()
    photographs = natural and fingerprint(natural, list_images(natural)[:MOST])
    work_folder = given.out.resolve().with_name(f"{given.out.name}.work")
    jobs: list[tuple[bool, Job]] = []
    for data in sets:
        labelled_images(data)
        truth = list_images(data / "ground_truth") if (data / "ground_truth").is_dir() else []
        images = fingerprint(data, list_images(good_folder(data)) + list_images(data / "test") + truth)
        for name in names:
            base = Settings(name, given.preset, given.size, given.width, given.seed, natural_images=natural)
            variants: dict[str, Any] = {FULL: {}}
            with contextlib.suppress(ImportError):  # the job reports a detector that cannot be imported
                cls = detector_class(name)
                network_arguments(cls, base)
                file = weights.get(cls.backbone, weights.get("")) if cls.backbone else None
                base = replace(base, backbone_weights=file and Path(file).resolve())
                variants |= {part: left_out for part, left_out in cls.ablations.items() if part in wanted}
            for variant, arguments in variants.items():
                settings = replace(base, arguments=arguments)
                key = {item.name: str(getattr(settings, item.name)) for item in fields(settings)}
                key |= {"budget": str(budget), "data": images, "variant": variant, "natural_images": str(photographs)}
                if settings.backbone_weights:
                    key["backbone_weights"] = hashlib.sha256(settings.backbone_weights.read_bytes()).hexdigest()
                digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
                folder = re.sub(r"[^\w.-]+", "-", f"{name}.{data.name}.{variant}.{digest}")
                jobs.append((variant != FULL, Job(data, variant, settings, budget, work_folder / folder)))
    return [job for _, job in sorted(jobs, key=lambda pair: pair[0])]


def main(arguments: list[str] | None = None) -> int:
    given = options(arguments)
    console = Console(stderr=True)
    try:
        return benchmark(given, plan(given), console)
    except LinesideError as error:
        print(f"accuracy: {error}", file=sys.stderr)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"accuracy: cannot use {error.filename}; got {error.strerror}.", file=sys.stderr)
    return 2


def benchmark(given: argparse.Namespace, jobs: list[Job], console: Console) -> int:
    """Run the jobs, write the report after each, and the pictures at the end. Returns the exit code."""
    folder = jobs[0].folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another command works in {folder}", expected="one at a time",
                             next="Wait, or give another --out.") from error
        stop = Stop(console)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        about = {name: getattr(given, name) for name in ("minutes", "steps", "preset", "size", "width", "seed")}
        about |= {"backbone weights": ", ".join(given.backbone_weights) or None,
                  "natural images": given.natural_images and given.natural_images.name}

        def report(errors: dict[Path, str], montages: dict[str, str] | None = None) -> dict[str, Any]:
            result = build_report(about, [job.row(errors.get(job.folder)) for job in jobs], montages or {})
            write_report(given.out, result)
            return result

        errors = run_jobs(jobs, sources(), stop, console, report)
        montages = {}
        for data in dict.fromkeys(job.data for job in jobs):
            done = [job for job in jobs if job.data == data and job.variant == FULL and job.result()]
            images = labelled_images(data)
            if done:
                montages[data.name] = f"{given.out.stem}-{data.name}.png"
                heats = {label(job.row(None)): Heat.read(job.folder / "maps.npz") for job in done}
                picked = [images[i] for i in pick(images)]
                draw_montage(given.out.with_name(montages[data.name]), data.name, picked, heats)
        result = report(errors, montages)
    if given.json:
        print(json.dumps(result))
    else:
        show(result, Console())
    for title, lines in (("Cut short; the same command continues with:", result["cut_short"]),
                         ("Failed:", result["failed"])):
        if lines:
            console.print("\n  ".join([title, *lines]), style="red", soft_wrap=True)
    return 130 if result["cut_short"] else 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
