"""Line control: the pure state of the belt, and the thread that owns the PLC link."""
