"""The losses inside other trainers: a module per library (transformers, trl), and what they share with mind.student:
condition, head, probe."""
