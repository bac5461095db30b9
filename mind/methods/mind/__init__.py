"""MIND: MetaNet scores the rationales, the student learns from the chosen ones and calibrates MetaNet."""
