"""Camera `custom`: a driver that the user wrote."""
