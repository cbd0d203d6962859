#!/usr/bin/env bash
# Makes the bundle of `make demo` from nothing, with the command given (default: lineside). About 8 minutes on two cores.
# The product is the woven cloth of seed 7; the demo inspects parts of its web that are neither fitted nor calibrated on.
set -eu
lineside=${1:-lineside}
work=out/demo-bundle
bundle=simulation/demo_bundle
rm -rf "$work"
mkdir -p "$work"
"$lineside" render woven --seed 7 --good 300 --test-good 600 --defective 120 --out "$work/woven"
"$lineside" fit sidn --data "$work/woven" --out "$work/run" --width 4 --steps 2200 --seed 1
"$lineside" export "$work/run" --out "$work/bundle"
"$lineside" calibrate "$work/bundle" --good "$work/woven/test/good" --false-reject-rate 0.02
"$lineside" evaluate "$work/bundle" --data "$work/woven"
rm -rf "$bundle"
mkdir -p "$(dirname "$bundle")"
cp -r "$work/bundle" "$bundle"
du -sh "$bundle"
