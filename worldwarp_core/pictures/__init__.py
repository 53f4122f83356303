"""Pictures and depth maps: read from files, written as OpenEXR, and brought to the size that the models work at."""
