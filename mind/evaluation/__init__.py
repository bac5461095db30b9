"""Evaluates students: accuracy by generation, and the negative log-likelihood of held-out rationales."""
