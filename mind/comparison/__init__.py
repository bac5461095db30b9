"""`mind compare`: finds out which of an experiment's methods is better, and what may be claimed from that."""
