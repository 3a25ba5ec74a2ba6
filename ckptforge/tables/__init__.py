"""Mapping tables: which tensors a model has in each layout, as named axes."""
