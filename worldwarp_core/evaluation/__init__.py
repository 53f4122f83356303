"""Judging: metrics, the held-out paths, and what runs them."""
