"""MindFormers' checkpoints since r1.7: iteration directories that describe their own shards."""
