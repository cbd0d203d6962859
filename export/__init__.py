"""Torch to ONNX, parity, and everything that makes a graph fit for the line."""
