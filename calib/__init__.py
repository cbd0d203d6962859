"""What is learned from frames after fitting: thresholds and metrics."""
