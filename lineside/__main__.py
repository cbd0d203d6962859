"""``python -m lineside``."""

from lineside.cli import main

main()
