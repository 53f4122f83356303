"""Endless procedural worlds, of which everything is known: for training and for the held-out test."""
