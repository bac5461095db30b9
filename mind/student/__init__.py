"""The model that learns, and its tokens."""
