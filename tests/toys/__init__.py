"""A kind of each thing that a user may add, in one file each: what docs/architecture.md promises."""
