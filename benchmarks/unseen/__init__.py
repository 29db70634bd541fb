"""Does a default search pay on a model that no setting was tuned on? Three checkpoints, trained here, say."""
