"""A simulated PLC on a pseudo serial port, with a decoder of its own."""
