"""Restoration of byte strings of any length: infilling, repair of flipped bits, and continuation of prompts by a diffusion model."""
