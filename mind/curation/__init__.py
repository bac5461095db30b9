"""From judged responses to training records: what is kept of them, what is dropped, and why."""
