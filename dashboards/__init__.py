"""Read-only views of what storage holds."""
