"""Diffusion over patches of bits: everything that is only for models that read both sides.

`noise` defines the noise, `denoiser` the model's predictions from noised windows, `bound` the likelihood bound; `infill` and `repair` use them.
"""

from bit_transformer.diffusion.bound import Bound as Bound
from bit_transformer.diffusion.bound import likelihood_bound as likelihood_bound
from bit_transformer.diffusion.infill import diffusion_inference as diffusion_inference
from bit_transformer.diffusion.repair import Repaired as Repaired
from bit_transformer.diffusion.repair import repair as repair
