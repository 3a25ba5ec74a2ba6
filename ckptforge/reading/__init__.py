"""A checkpoint read as a layout of a mapping table."""
