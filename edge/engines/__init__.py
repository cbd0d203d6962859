"""Engines: one file for each backend, all behind the same protocol of leased slots."""
