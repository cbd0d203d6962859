"""What travels through the line: frame, events, verdict, fault codes, encoder counts."""
