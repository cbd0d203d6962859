"""Line control: the pure state of the belt, and the process that owns the PLC link."""
