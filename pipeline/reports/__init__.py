"""What is told of evaluations: rows, CSV, Markdown, pictures, and how they were made."""
