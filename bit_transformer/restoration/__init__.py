"""Byte strings of any length: holes filled in, flipped bits set right, prompts continued by a diffusion model."""
