"""The losses inside other trainers: one module per library, which imports that library and is imported by nothing."""
