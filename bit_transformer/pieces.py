"""How much is worked on at once, where memory depends on it: for the code that does it, and for the estimate of its memory."""

MUON_PIECE = 1 << 22  # elements that the optimizer orthogonalises at once, or one matrix
BOUND_SAMPLES = 8  # of each window of a diffusion model, scored at once
VALIDATION_ROWS = 32  # windows that a validation scores at once, or as many as a micro-batch has, if these are fewer
