"""Small helpers that know nothing of functions."""
