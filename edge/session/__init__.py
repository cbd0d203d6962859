"""A recorded session of a line: written while it runs, and played again.

A session is a folder:

- ``session.json``: format, line, when it was recorded, whether all of it was written
- ``line.toml``: the line file
- ``bundles/N``: a copy of each bundle that was live
- ``frames/*.tif``: each frame as the camera delivered it, without loss
- ``runtime.jsonl``: triggers, frames with their ids and times, verdicts, outcomes
- ``control.log``: all that line control took in and sent, byte by byte, with the moments of its clock (see edge.control.tape)
"""
