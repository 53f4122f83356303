"""Camera paths: their math, their files, and paths taken from a reference video; all in NumPy."""
