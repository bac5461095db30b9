"""Which answer a response states, and whether it is right."""
