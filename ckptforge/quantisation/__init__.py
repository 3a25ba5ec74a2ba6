"""Quantised weights: what says that they are, and reading them as what they stand for."""
