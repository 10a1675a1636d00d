"""What scaling to zero saved, and how long requests waited for it."""
