"""One interface, and the ways to run evaluations: in this process, on actors of Ray, workers of Dask, jobs of Slurm."""
