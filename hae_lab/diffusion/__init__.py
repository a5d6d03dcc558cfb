"""Diffusion: data, training, quality."""
