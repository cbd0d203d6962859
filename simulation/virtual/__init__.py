"""Line control's rules over a million parts, in virtual time."""
