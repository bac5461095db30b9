"""What setup.py does: finds the tools, compiles what they allow, and says what was built and what was not."""
