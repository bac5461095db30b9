"""From tokenized questions to the hidden states of a micro-batch."""
