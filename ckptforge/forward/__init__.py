"""The forward check: the same tokens through transformers' layers and through a minimal network in
MindSpore.

The only place in the package that knows how models compute; which of it a model needs follows from
its table and config.json.
"""
