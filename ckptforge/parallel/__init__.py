"""Partitions: which box of the full tensor a rank holds. Nothing here knows checkpoint formats or
models."""
