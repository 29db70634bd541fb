"""Feature spaces by what names them: one file a kind, and one line in the registry of `extractor.py`."""
