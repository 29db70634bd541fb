"""Which ranking picks the best children of one elite: measured once, told anew in a minute."""
