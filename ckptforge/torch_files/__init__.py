"""torch's zip files: an index of what they hold, of which nothing is executed."""
