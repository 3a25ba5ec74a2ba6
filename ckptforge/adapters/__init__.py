"""LoRA adapters: read, added to a checkpoint where it is read, converted between layouts."""
