"""Cameras tracked from a reference video: by COLMAP, or by an estimator that the user has installed."""
