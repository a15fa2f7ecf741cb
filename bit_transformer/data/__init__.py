"""Training data: `sources` finds and maps files, `windows` draws batches from them."""
