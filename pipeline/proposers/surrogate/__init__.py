"""What ranks proposals before they are evaluated."""
