"""Stand-ins for what a line has and a desk has not: surfaces, a PLC, faults."""
