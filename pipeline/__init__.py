"""The search: loop, sampler, surrogate, rungs, executors, recipes, command line."""
