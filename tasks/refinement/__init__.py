"""Tuning a schedule's continuous decisions by gradient against a many-step teacher."""
