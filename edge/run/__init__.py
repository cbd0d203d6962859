"""A running line: the runtime, its supervisor, and the commands to both."""
