"""Loads the student model, and turns texts into its tokens."""
