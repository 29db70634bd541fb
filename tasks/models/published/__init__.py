"""Published checkpoints of other programs as diffusers models: the same numbers under other names."""
