"""The mixer: weighs the experts' predictions of a bit by the trunk's state.

    logit(bit j of the next patch) = h . E[node] + sum_f w_f(h, j, node) * feature_f

The first term is the prefix-tree head's; this is the second. Features are logits of adaptive predictors (`experts/`). Each has a
weight that is learned per node, plus one computed from the trunk's state h for bit j. This is the gated mixing of PAQ with a
transformer as the gate, trained by back-propagation with everything else. At first the last feature, the bank's own mixture, has
weight 1 and the others 0.

Sources: Mahoney 2005 (logistic mixing); Mattern 2013, "Linear and geometric mixtures" (why logits add).
"""

# Shapes: B batch, N patches, P bits of a patch, D model width, V = 2^P nodes, F features.
from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bit_transformer.nn.patching import node_depths
from bit_transformer.nn.quantized import Rounding, plain, rounded


class ExpertMixer(nn.Module):
    """Weights for the experts' logits.

    Args:
        features: F.
        scale: the logit that a feature of 1 stands for.

    Attributes:
        rounding: how the gate's weights are rounded in the forward pass; None: not at all.
    """

    rounding: Rounding | None = None

    def __init__(self, d_model: int, patch_bits: int, features: int, scale: float) -> None:
        super().__init__()
        self.patch_bits, self.features, self.scale = patch_bits, features, scale
        by_node = torch.zeros(1 << patch_bits, features)
        by_node[:, -1] = 1.0
        self.by_node = nn.Parameter(by_node)
        self.gate = nn.Parameter(torch.zeros(patch_bits * features, d_model))

    def forward(self, h_BND: Tensor, features_BNPF: Tensor, node_BNP: Tensor) -> Tensor:
        """The experts' part of the logits along the paths to the given patches: z_BNP."""
        feature_BNPF = features_BNPF.to(self.by_node.dtype) * self.scale
        weight_BNPF = F.linear(h_BND, rounded(self.gate, self.rounding)).view(feature_BNPF.shape) + F.embedding(
            node_BNP, self.by_node
        )
        return (weight_BNPF * feature_BNPF).sum(-1)

    def at_nodes(self, h_ND: Tensor, features_NVF: Tensor) -> Tensor:
        """The experts' part at every node of N patches, given their features at every node; with gradients: z_NV."""
        gate_NPF = F.linear(h_ND, rounded(self.gate, self.rounding)).view(len(h_ND), self.patch_bits, self.features)
        weight_NVF = gate_NPF[:, node_depths(self.patch_bits, h_ND.device)] + self.by_node
        return torch.einsum("nvf,nvf->nv", weight_NVF, features_NVF.to(weight_NVF.dtype)) * self.scale

    def node_logits(self, h_BD: NDArray[np.float32], features_BVF: NDArray[np.int8]) -> NDArray[np.float32]:
        """The same at every node of one patch, in NumPy: z_BV."""
        gate_BPF = (h_BD @ plain(self.gate, self.rounding).float().cpu().numpy().T).reshape(
            len(h_BD), self.patch_bits, self.features
        )
        weight_BVF = gate_BPF[:, node_depths(self.patch_bits).numpy()] + self.by_node.detach().float().cpu().numpy()
        mixed_BV: NDArray[np.float32] = np.einsum("bvf,bvf->bv", weight_BVF, features_BVF.astype(np.float32))
        return mixed_BV * np.float32(self.scale)
