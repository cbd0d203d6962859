"""Conformal thresholds: a threshold with a guaranteed false-reject rate, from the scores of good parts not fitted on.

Of n exchangeable scores, take the ceil((n+1)(1-rate))-th smallest: the score of another good part exceeds it with
probability at most ``rate`` (split conformal prediction: Papadopoulos et al. 2002; Angelopoulos and Bates, arXiv
2107.07511). That probability is over calibration set and part together; a 95 % bound for this one set stands beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from calib.collect import read_set
from edge.base.errors import InputError
from edge.bundle.bundle import Bundle
from edge.bundle.decision import Threshold, keep_thresholds, write_threshold
from edge.engines.backends import all_backends, get_backend, processor_backend
from edge.engines.engine import Precision
from edge.images.files import good_folder, list_images, read_image
from edge.images.frames import frame_hash
from edge.inspection.inspector import Inspector

CONFIDENCE = 0.95


def rank(n: int, rate: float) -> int:
    """ceil((n + 1)(1 - rate)), exact for the decimal number that ``rate`` is written as."""
    return math.ceil((n + 1) * (1 - Fraction(str(rate))))


def parts_needed(rate: float) -> int:
    """The smallest number of good parts that can guarantee a false-reject rate."""
    return math.ceil((1 - Fraction(str(rate))) / Fraction(str(rate)))


def smallest_rate(n: int) -> float:
    """The smallest false-reject rate that n good parts can guarantee, 1 / (n + 1), rounded up to four decimals."""
    return math.ceil(10_000 / (n + 1)) / 10_000


def upper_bound(n: int, k: int, confidence: float = CONFIDENCE) -> float:
    """An upper bound, with the given confidence, of the false-reject rate at the k-th smallest of n scores.

    Without ties that rate has the distribution Beta(n + 1 - k, k) (Vovk 2012, prop. 2a). Its distribution function at x
    is P(Binomial(n, x) >= n + 1 - k), inverted here by bisection: scipy would add 110 MB to a line's installation.
    """
    def cdf(x: float) -> float:
        def log_probability(i: int) -> float:
            choices = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
            return choices + i * math.log(x) + (n - i) * math.log1p(-x)

        return 1 - math.fsum(math.exp(log_probability(i)) for i in range(n + 1 - k))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle) < confidence else (low, middle)
    return high


@dataclass(frozen=True)
class Calibration:
    """A calibrated threshold and what it rests on."""

    threshold: Threshold
    scores: list[float]  # of the good parts, ascending
    duplicates: list[str]  # files with the same pixels as an earlier one
    others: list[Threshold]  # for the other precisions and backends


def calibration_images(bundle: Bundle, good: Path | None) -> tuple[list[Path], list[str], list[str]]:
    """The images to calibrate on, their hashes, and the files dropped because another has the same pixels.

    good: a folder, or None for the images that the fit set aside. Raises InputError for images that were fitted on or
    are missing.
    """
    record = bundle.images()
    fitted = {image["sha256"] for image in record["fitted"]}
    if good is None:
        folder = Path(record["data"])
        paths = [folder / image["name"] for image in record["held_out"]]
        if missing := [path for path in paths if not path.is_file()]:
            raise InputError(f"{len(missing)} of the {len(paths)} images that the fit set aside are missing",
                             got=f"no {missing[0]}", expected=f"the images of the fit in {folder}",
                             next="Run from the folder in which `lineside fit` ran, or give good images by --good.")
    else:
        if (good / "manifest.json").is_file() and not read_set(good).reviewed:
            raise InputError(f"nobody has reviewed the calibration set {good}", got="frames that may show defects",
                             expected="a set from which all defects have been removed",
                             next=f"Look at {good / 'index.html'}, then: lineside collect --out {good} --leave-out "
                             f"NUMBERS, or none")
        paths = list_images(good_folder(good))
    held_out = {} if good is not None else {folder / image["name"]: image["sha256"] for image in record["held_out"]}
    hashes: dict[str, Path] = {}
    duplicates = []
    for path in paths:
        sha256 = frame_hash(read_image(path))
        if held_out.get(path, sha256) != sha256:
            raise InputError(f"{path} is not the image that the fit set aside", got="other pixels under that name",
                             next="Run from the folder in which `lineside fit` ran, or give good images by --good.")
        if sha256 in hashes:
            duplicates.append(str(path))
        hashes.setdefault(sha256, path)
    if refused := [path for sha256, path in hashes.items() if sha256 in fitted]:
        names = ", ".join(path.name for path in refused[:5]) + (" and more" if len(refused) > 5 else "")
        raise InputError(f"{len(refused)} of {len(hashes)} images were fitted on: {names}",
                         got="images whose scores the network was trained to make low",
                         expected="good parts that it has never seen",
                         next="Remove them; without --good the images that the fit set aside are used.")
    return list(hashes.values()), list(hashes), duplicates


def digest_of(hashes: Sequence[str]) -> str:
    """SHA-256 over the hashes of good parts, in any order."""
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def score_parts(bundle: Bundle, paths: Sequence[Path], precision: Precision, backend: str,
                progress: Callable[[int, int], None] = lambda *_: None) -> list[float]:
    """The scores of images in a precision on a backend, ascending."""
    scores = []
    with Inspector(bundle, precision=precision, backend=backend) as inspector:
        for done, path in enumerate(paths, 1):
            scores.append(inspector.inspect(read_image(path), None).score)
            progress(done, len(paths))
    return sorted(scores)


def make_threshold(scores: Sequence[float], hashes: Sequence[str], precision: Precision, backend: str,
                   rate: float) -> Threshold:
    """The threshold of a precision on a backend from the ascending scores of good parts, without its seal."""
    n, k = len(scores), rank(len(scores), rate)
    return Threshold(precision=precision, backend=backend, value=scores[k - 1], false_reject_rate=rate,
                     upper_bound_95=upper_bound(n, k), good_parts=n, good_parts_sha256=digest_of(hashes))


def calibrate(bundle: Bundle, good: Path | None, rate: float, backend: str | None = None,
              progress: Callable[[int, int], None] = lambda *_: None) -> Calibration:
    """Calculate the thresholds of all precisions that the bundle offers, and write them into ``decision.toml``.

    backend: a name; None: the processor's backend, and those that have a fitting plan of the bundle (TensorRT). The
    thresholds of other backends stay, and hold while their seals match.

    Raises InputError, with the bundle unchanged, for too few good parts, images that were fitted on, or unusable ones.
    """
    if not 0 < rate < 1:
        raise InputError("the false-reject rate is a probability", got=rate,
                         expected="more than 0 and less than 1, such as 0.05")
    paths, hashes, duplicates = calibration_images(bundle, good)
    n, k = len(paths), rank(len(paths), rate)
    if k > n:
        short = parts_needed(rate) - n
        raise InputError(
            f"too few good parts to guarantee a false-reject rate of {rate:g}", got=f"{n} good parts",
            expected=f"{parts_needed(rate)}, that is {short} more",
            next=f"These {n} can guarantee {smallest_rate(n):g}: run again with --false-reject-rate "
            f"{smallest_rate(n):g}, "
                 f"or with --good and a folder of more good parts. The bundle is unchanged.",
        )
    rule_sha256 = bundle.decision.rule_sha256(bundle.folder)
    made: list[tuple[Threshold, list[float]]] = []
    graphs = [(name, bundle.graph_sha256(name)) for name in bundle.offered()]
    if backend is None:
        backends = [get_backend(processor_backend()), *(on for on in all_backends() if on.needs_plan)]
        wanted = [(name, on.name) for on in backends for name, graph in graphs if on.can_run(name, graph)
                  and on.plan_fits(graph)]
    else:
        wanted = [(name, backend) for name, graph in graphs if get_backend(backend).can_run(name, graph)]
    if not wanted:
        raise InputError(f"{bundle.folder} has nothing that runs on {backend}", got="no plan",
                         next=f"Run `lineside engine {bundle.folder}`.")
    for number, (precision, on) in enumerate(wanted):
        def moved(done: int, _: int, before: int = number * n) -> None:
            progress(before + done, len(wanted) * n)

        scores = score_parts(bundle, paths, precision, on, moved)
        made.append((make_threshold(scores, hashes, precision, on, rate), scores))
    keep_thresholds(bundle.folder, bundle.offered())  # others belong to graphs that may be gone
    written = [write_threshold(bundle.folder, threshold, bundle.graph_sha256(threshold.precision), rule_sha256)
               for threshold, _ in made]
    return Calibration(written[0], made[0][1], duplicates, written[1:])


def describe(scores: Sequence[float], value: float) -> str:
    """One line that tells where a threshold lies among the good scores."""
    above = sum(score > value for score in scores)
    return (f"good scores {scores[0]:.4f} to {scores[-1]:.4f}, median {scores[len(scores) // 2]:.4f}; "
            f"{above} of {len(scores)} above")
