"""Solver schedules: as data, as genomes of a search, and those that are known."""

from fewstep.search_spaces.schedule.solver import (
    MAX_STEPS,
    MIN_GAP,
    SCHEMA_VERSION,
    FirstCall,
    Lambda,
    Prediction,
    SolverSchedule,
    Step,
    Threshold,
    load_schedule,
)

__all__ = [
    "MAX_STEPS",
    "MIN_GAP",
    "SCHEMA_VERSION",
    "FirstCall",
    "Lambda",
    "Prediction",
    "SolverSchedule",
    "Step",
    "Threshold",
    "load_schedule",
]
