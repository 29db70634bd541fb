"""One file a performance claim; each ends with one JSON line holding a ratio."""
