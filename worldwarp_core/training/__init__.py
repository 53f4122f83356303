"""Training of the small networks and of LoRAs: clips with one-to-all warps, the objective and the trainers."""
