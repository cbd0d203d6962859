"""Camera `custom`: a driver in a file of the line's own."""
