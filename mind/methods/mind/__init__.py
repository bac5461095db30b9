"""MIND: MetaNet scores the rationales, the student learns from the selected ones, and its losses calibrate MetaNet."""

from mind.methods.mind.method import Mind

__all__ = ["Mind"]
