"""Features, mergeable moments and the Frechet distance."""
