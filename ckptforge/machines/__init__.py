"""Several processes, on one machine or on many, that carry out one plan."""
