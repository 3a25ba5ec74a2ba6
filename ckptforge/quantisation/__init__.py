"""Quantised weights: what says that they are, which tensors belong to one, and reading them as what
they stand for."""
