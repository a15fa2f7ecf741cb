"""Coding of bits into fewer: an arithmetic coder for predicted bits, run lengths, filters, and the container of compressed files."""
