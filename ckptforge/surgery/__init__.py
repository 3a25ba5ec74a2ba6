"""Functions from model to model."""
