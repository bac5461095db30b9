"""Triton kernels of the cross-entropy, and their launchers."""
