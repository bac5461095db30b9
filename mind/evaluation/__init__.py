"""Accuracy by generation, and the negative log-likelihood of held-out rationales."""
