"""Edits of images without training: invert to a step, move across a boundary once, generate from there."""
