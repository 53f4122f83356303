"""Wan 2.1's models: found, loaded, run within the memory there is, and handed to ST-Diff."""
