"""Where candidates come from: Optuna's samplers, S^3, evolution on a Pareto front."""
