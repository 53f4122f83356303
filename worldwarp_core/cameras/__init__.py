"""Camera paths: their math and their files, in NumPy alone."""
