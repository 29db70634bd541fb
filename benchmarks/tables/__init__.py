"""The documentation's tables: one file each on one engine, `python -m benchmarks.tables NAME`."""
