"""How a plan is carried out: in constant memory, by several workers."""
