"""Camera `video`: what OpenCV reads."""
