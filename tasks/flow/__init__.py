"""Latent flow matching: sampling by ODE solvers, and what bounds the distance between data and samples."""
