"""Compile a schedule into linear tables and run them."""
