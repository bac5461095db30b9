"""Where the operators are: torch.ops.mind_kernels, and mind_kernels_cpp and mind_kernels_cuda for the compiled ones.

A build for the Hub has another namespace here, its own, since a process may load several (build_tools/hub.py).
"""

NAMESPACE = "mind_kernels"
