"""Stand-ins for what a line has and a desk has not: surfaces, a PLC, a conveyor. Nothing else in edge/ imports them."""
