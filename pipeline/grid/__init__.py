"""Grids: every combination of models, schedules, calls, quantisations, guidance, seeds and metrics, each made once."""
