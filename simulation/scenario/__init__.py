"""A whole line under the faults of a scenario, and what became of every part."""
