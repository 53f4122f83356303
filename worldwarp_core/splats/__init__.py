"""The persistent 3D Gaussian cache: Gaussians, their rasterisers, fitting, and the store of what was seen."""
