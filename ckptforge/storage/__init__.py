"""Where bytes lie: reading and naming files. Knows no format."""
