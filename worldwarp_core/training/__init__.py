"""Training of the preview model: procedural worlds, clips with one-to-all warps, the objective and the trainers."""
