"""One frame through an engine, the post-filter and the rule."""
