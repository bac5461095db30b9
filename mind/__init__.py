"""MIND: capability-aware multi-perspective chain-of-thought distillation (arXiv 2601.03717)."""
