"""Rationales from a teacher model: what is asked, by which engine, and the durable record of the answers."""
