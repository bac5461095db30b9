"""Turns tokenized questions into micro-batches, computes their hidden states, and the student's loss on them."""
