#!/usr/bin/env python3
"""Feed random and mutated bytes to each decoder of the `frames` protocol, the line's and the simulated PLC's.

After each string comes one good frame. Exit code 1 if a decoder raises, finds a frame that was not sent (a false reject
is one), or does not find the good frame.

    benchmarks/fuzz.py --strings 1000000
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from edge.plc.wire import PLC_CODES, Decoder, Message
from simulation.plc.wire import CODES, FROM_LINE, Frame, Reader

BORROWED = b"L"  # a message that lost its last byte may take the next one's first: docs/plc-frames.md, Resynchronising


def line_frame(draw: random.Random) -> bytes:
    """A random message of a PLC."""
    kind = draw.choice(list(PLC_CODES))
    return Message(kind, draw.randint(0, PLC_CODES[kind]), draw.getrandbits(16), draw.getrandbits(16),
                   draw.getrandbits(32), draw.getrandbits(32) - (1 << 31), draw.getrandbits(32)).encode()


def plc_frame(draw: random.Random) -> bytes:
    """A random message of the line, by the simulated PLC's codec."""
    kind = draw.choice(sorted(FROM_LINE))
    return Frame(kind, draw.choice(sorted(CODES[kind])[:10]), draw.getrandbits(16), draw.getrandbits(16),
                 draw.getrandbits(32), draw.getrandbits(32) - (1 << 31), draw.getrandbits(32)).encode()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to eight of them changed, lost, doubled or inserted, or with their end cut off."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        if not changed:
            break
        at, kind = draw.randrange(len(changed)), draw.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at]
        elif kind == 2:
            changed.insert(at, draw.randrange(256))
        elif kind == 3:
            changed[at:at] = changed[at:at + draw.randint(1, 24)]
        else:
            del changed[at:]
    return bytes(changed)


def strings(make: Callable[[random.Random], bytes], draw: random.Random) -> tuple[bytes, list[bytes], list[bytes]]:
    """Random bytes, a mutated message, or messages with mutated ones between them.

    Also returns the whole messages, and all parts.
    """
    kind = draw.randrange(3)
    if kind == 0:
        return draw.randbytes(draw.randint(0, 80)), [], []
    data = b""
    whole: list[bytes] = []
    made: list[bytes] = []
    for _ in range(1 if kind == 1 else draw.randint(1, 4)):
        made.append(make(draw))
        if kind == 2 and draw.random() < 0.5:
            data, whole = data + made[-1], [*whole, made[-1]]
        else:
            data += mutated(made[-1], draw)
    return data, whole, made


def fuzz(decoder: Any, make: Callable[[random.Random], bytes], count: int, seed: int,
         progress: Callable[[int], None] = lambda _: None,
         encode: Callable[[Any], bytes] = lambda frame: frame.encode()) -> dict[str, int]:
    """Feed ``count`` strings. Returns counts of what was fed and of what went wrong."""
    draw = random.Random(seed)
    result = {"strings": count, "bytes": 0, "frames": 0, "exceptions": 0, "false_frames": 0, "lost_frames": 0,
              "borrowed": 0}
    for number in range(count):
        data, whole, made = strings(make, draw)
        good = make(draw)
        result["bytes"] += len(data) + len(good)
        got: list[bytes] = []
        try:
            cut = draw.randint(0, len(data))
            for piece in (data[:cut], data[cut:] + good):
                got += [encode(frame) for frame in decoder.feed(piece)]
        except Exception:
            result["exceptions"] += 1
        result["frames"] += len(got)
        result["false_frames"] += sum(frame not in [*made, good] for frame in got)
        missing = sum(frame not in got for frame in [*whole, good])
        borrowed = any(frame not in [*whole, good] and frame.endswith(BORROWED) for frame in got)
        result["borrowed" if borrowed else "lost_frames"] += missing
        if missing:
            decoder.feed(bytes(24))  # ends a message that was begun
        if number % 1000 == 999:
            progress(number + 1)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=1_000_000, help="for each decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {}
    with Progress(console=Console(stderr=True)) as bar:
        for name, decoder, make in (("line", Decoder(), line_frame), ("plc", Reader(), plc_frame)):
            task = bar.add_task(f"decoder of the {name}", total=arguments.strings)

            def show(done: int, task: TaskID = task) -> None:
                bar.update(task, completed=done)

            results[name] = fuzz(decoder, make, arguments.strings, arguments.seed, show)
    good = not any(result[key] for result in results.values() for key in ("exceptions", "false_frames", "lost_frames"))
    if arguments.json:
        print(json.dumps({"decoders": results, "passed_all": good}))
    else:
        table = Table("decoder", *results["line"])
        for name, result in results.items():
            table.add_row(name, *(f"{count:,}" for count in result.values()))
        Console().print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
