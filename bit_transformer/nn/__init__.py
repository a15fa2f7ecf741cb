"""Layers. They work on patches and positions, and import nothing about files, training or users."""
