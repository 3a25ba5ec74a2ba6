"""The files that a model's tensors go into."""
