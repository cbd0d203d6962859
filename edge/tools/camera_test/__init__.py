"""`lineside camera-test`: what a camera delivers, measured and shown."""
