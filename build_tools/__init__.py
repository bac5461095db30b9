"""The build behind setup.py: finds the tools, compiles what they allow, and records what was built and what was not."""
