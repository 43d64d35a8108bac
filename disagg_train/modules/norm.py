"""RMSNorm and LayerNorm for the CPU layer spec; unlike torch's, they work under sp.

Whatever the type of the rows, means and variances are computed in fp32.
"""

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn


class Norm(nn.Module):
    """Normalises the last dim as ``config.normalization`` says.

    Under sequence parallelism each tp rank sees its own tokens only, so the weights carry
    ``sequence_parallel`` and Megatron sums their gradients over tp.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        centred = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if centred else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``[..., D]``."""
        shape, weight = self.weight.shape, self.weight.float()
        if self.bias is None:
            found = nn.functional.rms_norm(x.float(), shape, weight, self.eps)
        else:
            found = nn.functional.layer_norm(x.float(), shape, weight, self.bias.float(), self.eps)
        return found.to(x.dtype)
