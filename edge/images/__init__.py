"""Frames and anomaly maps as arrays: reading, writing, preparing, tiling."""
