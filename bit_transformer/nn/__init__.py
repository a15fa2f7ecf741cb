"""Layers. They know patches and positions; none of them knows files, training or users."""
