"""The live dashboard: pages over any number of study folders, read-only, for as long as searches write into them."""
