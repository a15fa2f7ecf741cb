"""Models that ours is compared with: trained here, on the same data, under the same budget."""
