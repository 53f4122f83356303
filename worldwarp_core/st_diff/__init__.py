"""ST-Diff, the learned fill: its noise map, its sampler, its presets and its prompts."""
