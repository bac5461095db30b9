"""Gets rationales from a teacher model: what it is asked, which engine asks it, and a durable record of its answers."""
