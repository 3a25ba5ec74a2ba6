"""MindFormers' own code for checkpoints, run on a CPU: what its training would have written, and
what it makes of a checkpoint.

Its wheel is downloaded from the package index without what it requires (an Ascend build of
MindSpore among it) and put on the path of a process of its own (`imports`), in which all ranks of a
job run in turns (`world`). Networks are plain cells (`cells`): of the networks that MindFormers
trains, its code for checkpoints uses parameters, their names, and their layouts, which a job says
(`jobs`). The fixture `mindformers` (`fixtures`) is what tests use.
"""
