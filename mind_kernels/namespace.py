"""The namespace of the operators: torch.ops.mind_kernels, and mind_kernels_cpp and mind_kernels_cuda for compiled ones.

A build for the Hub replaces it by a namespace of its own, since a process may load several builds (build_tools/hub.py).
"""

NAMESPACE = "mind_kernels"
