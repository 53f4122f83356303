"""Models as files: which there are, where they lie, whether they are whole, and what is in them."""
