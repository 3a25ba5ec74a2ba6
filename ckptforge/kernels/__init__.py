"""What is done to every number of large tensors, compiled: one pass where numpy takes one for each
operation, and without the interpreter's lock. Where no compiler was at hand when the package was
built, numpy does the same."""
