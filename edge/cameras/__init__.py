"""Cameras: one file or folder for each kind, all behind the same small protocol."""
