"""Measurements of speed: what a pass, a chunk or a training step costs, beside plain diffusers and the hardware's limit."""
