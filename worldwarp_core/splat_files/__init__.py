"""Splat files in NumPy: no torch, so that the add-on can carry it."""
