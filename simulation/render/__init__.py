"""Rendered surfaces with and without defects."""
