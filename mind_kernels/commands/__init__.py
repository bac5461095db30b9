"""The commands of `python -m mind_kernels`, one module each, which defines main(arguments) -> exit status."""
