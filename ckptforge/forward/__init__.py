"""The forward check: the same tokens through transformers' layers and through a minimal network in
MindSpore.

The only place in the package that knows how one model computes; everything else is data.
"""
