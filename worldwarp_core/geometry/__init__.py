"""Depth for history frames: exact from the scene, rendered from the cache, estimated by a model, or inpainted."""
