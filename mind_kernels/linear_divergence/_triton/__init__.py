"""Triton kernels of the divergences, and their launchers."""
