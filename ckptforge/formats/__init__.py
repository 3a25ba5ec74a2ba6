"""On-disk formats: what a file holds and where its bytes lie. Knows no model, table or rank."""
