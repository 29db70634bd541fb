"""Who climbs the ladder: promotion policies, one a file."""
