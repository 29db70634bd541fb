"""Edits outside a search: fit boundaries, apply them, show what comes of it."""
