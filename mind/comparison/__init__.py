"""Which of an experiment's methods is better, and what may be claimed of that: `mind compare`."""
