"""LoRA adapters: reading them, adding them to a checkpoint where it is read, and converting them
between layouts."""
