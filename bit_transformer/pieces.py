"""Sizes of the pieces that are processed at once, used by the code and by the estimate of its memory."""

MUON_PIECE = 1 << 22  # elements that the optimizer orthogonalises at once, at least one matrix
BOUND_SAMPLES = 8  # per window of a diffusion model, scored at once
VALIDATION_ROWS = 32  # windows that a validation scores at once, or those of a micro-batch, if these are fewer
