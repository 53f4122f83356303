"""Wan's transformer made ready for ST-Diff: few noise levels for many tokens, faster, smaller, or on several GPUs."""
