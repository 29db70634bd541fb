"""What a search does besides proposing: refinement, finals, local moves; one a file."""
