"""Depth: exact from the scene, rendered from the cache, estimated or inpainted; and depth maps fused into a surface."""
