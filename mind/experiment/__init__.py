"""Experiments: methods x seeds as a plan says, at equal budgets, each run a process of its own."""
