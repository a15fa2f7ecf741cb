"""Diffusion over patches of bits: all that only models which read both sides do.

`noise` says what is lost when, `denoiser` what the model makes of it, `bound` what that says of the likelihood; `infill` and `repair` use it.
"""

from bit_transformer.diffusion.bound import Bound as Bound
from bit_transformer.diffusion.bound import likelihood_bound as likelihood_bound
from bit_transformer.diffusion.infill import diffusion_inference as diffusion_inference
from bit_transformer.diffusion.repair import Repaired as Repaired
from bit_transformer.diffusion.repair import repair as repair
