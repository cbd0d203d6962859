"""Everything that runs at the line: cameras, engines, post-filter, verdicts, line control, PLC links."""
