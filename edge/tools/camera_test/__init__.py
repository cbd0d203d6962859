"""`lineside camera-test`: measures what a camera delivers, and shows it."""
