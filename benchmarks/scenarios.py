#!/usr/bin/env python3
"""Run the scenarios of benchmarks/scenarios, all or those named, and report which of them reconcile. Exit code 1 unless
all do.

    benchmarks/scenarios.py                            # all, about half a minute each
    benchmarks/scenarios.py kill-runtime frames
    benchmarks/scenarios.py --out out/scenarios        # keeps journals, logs, reports and pictures
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).with_name("scenarios")


def run(path: Path, out: Path) -> dict[str, object]:
    """Run one scenario in a process of its own. Returns its figures."""
    began = time.monotonic()
    process = subprocess.run([sys.executable, "-m", "lineside", "simulate", str(path), "--out", str(out / path.stem),
                              "--json"],
                             capture_output=True, text=True, cwd=FOLDER.parents[1])
    report = json.loads(process.stdout) if process.stdout.strip().startswith("{") else {}
    return {"scenario": path.stem, "exit_code": process.returncode, "seconds": round(time.monotonic() - began, 1),
            "message": process.stderr.strip()[-500:] if process.returncode else "", "report": report}


def cells(result: dict[str, object]) -> list[str]:
    """A row of the table."""
    report = result["report"]
    assert isinstance(report, dict)
    if not report:
        return [str(result["scenario"]), *["-"] * 6, f"[red]{result['message']}"]
    names = ("triggers", "passed", "rejected", "uninspected")
    causes = ", ".join(f"{cause} {count}" for cause, count in report.get("causes", {}).items())
    said = [f"{f['rule']}{'' if f['part'] is None else ' of part ' + str(f['part'])}: {f['text']}"
            for f in report.get("failures", [])]
    return [str(result["scenario"]), *(str(report[name]) for name in names), causes, str(result["seconds"]),
            "reconciles" if result["exit_code"] == 0 else f"[red]{len(said)}: {said[0] if said else result['message']}"]


def main() -> int:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="scenarios, without .toml; all unless given")
    parser.add_argument("--out", type=Path, help="folder that keeps the runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    paths = [FOLDER / f"{name}.toml" for name in arguments.names] or sorted(FOLDER.glob("*.toml"))
    if missing := [path for path in paths if not path.exists()]:
        print(f"no scenario {missing[0].stem}; there are " + ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml"))),
              file=sys.stderr)
        return 2
    results = []
    with tempfile.TemporaryDirectory(prefix="lineside-scenarios-") as folder:
        for path in paths:
            results.append(run(path, arguments.out or Path(folder)))
            print(" ".join(cells(results[-1])), file=sys.stderr)
    if arguments.json:
        print(json.dumps(results))
    else:
        table = Table("scenario", "triggers", "passed", "rejected", "uninspected", "causes", "s", "result",
                      title="Scenarios")
        for result in results:
            table.add_row(*cells(result))
        Console().print(table)
    return 0 if all(result["exit_code"] == 0 for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
