"""MIND: MetaNet scores the rationales, the student learns from the chosen ones and calibrates MetaNet."""

from mind.methods.mind.method import Mind

__all__ = ["Mind"]
