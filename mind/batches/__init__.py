"""From tokenized questions to the hidden states of a micro-batch, and the student's loss on it."""
