"""What may be chosen: solver schedules, their presets and the space they span."""
