"""The losses inside other trainers: one module per library, and helpers (condition, head, probe) that mind.student uses
too."""
