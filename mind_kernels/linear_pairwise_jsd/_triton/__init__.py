"""Triton kernels of the pairwise JSD, and their launchers."""
