"""Whole diffusers pipelines as models: called as they are, with our schedules in them."""
