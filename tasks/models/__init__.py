"""Networks, noise schedules and the bundled zoo."""
