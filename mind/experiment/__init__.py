"""Runs experiments: methods x seeds according to a plan, at equal budgets, each run in its own process."""
