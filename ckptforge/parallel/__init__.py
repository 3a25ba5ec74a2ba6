"""Partitions: which box of the full tensor a rank holds. Knows no formats and no models."""
