"""Turns judged responses into training records, and reports what was kept, what was dropped, and why."""
