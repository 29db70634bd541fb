"""What an actor can do with a model, as plain classes without Ray."""
