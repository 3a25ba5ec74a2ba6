"""Tensors that are looked at instead of written: compared, hashed, read as arrays."""
