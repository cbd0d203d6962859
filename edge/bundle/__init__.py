"""The bundle on disk, and the rule and thresholds that decide about its map."""
