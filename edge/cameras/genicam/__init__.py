"""Camera `genicam`: GigE Vision and USB3 Vision cameras by Aravis."""
