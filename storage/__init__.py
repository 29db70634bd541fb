"""Record types, Parquet tables, tracking and queries."""
