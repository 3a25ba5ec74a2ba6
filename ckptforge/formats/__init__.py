"""On-disk formats: what a file holds and where its bytes lie. Nothing here knows models, mappings
or ranks."""
