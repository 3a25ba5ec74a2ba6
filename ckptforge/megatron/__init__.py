"""Checkpoints of Megatron-LM and of trainers made of it: a file of torch for each rank."""
