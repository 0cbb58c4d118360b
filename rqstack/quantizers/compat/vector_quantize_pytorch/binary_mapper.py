"""The binary mapper with the signature of vector-quantize-pytorch 1.32; the arithmetic is that of the core.

Legend: C bits of a code, K = 2^C codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic import gradient
from rqstack.quantizers.arithmetic.bit_entropy import bit_entropy
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings, require
from rqstack.quantizers.methods.binary_mapper import LN2, code_log_probs
from rqstack.quantizers.methods.lookup_free import codes_of_bits


@checks_settings
class BinaryMapper(nn.Module):
    """Log odds of bits (..., bits) -> one code of 2^bits as a one-hot vector, drawn, and the excess of its divergence.

    kl_loss_threshold: divergence from uniform codes, in nats, that costs nothing. deterministic_on_eval: the likelier
    value of every bit in eval mode.
    """

    shifts: Tensor
    zero: Tensor

    def __init__(self, bits: int = 1, kl_loss_threshold: float = LN2, deterministic_on_eval: bool = False):
        super().__init__()
        check_sizes(bits=bits)
        self.bits, self.num_codes = bits, 2**bits
        self.kl_loss_threshold, self.deterministic_on_eval = kl_loss_threshold, deterministic_on_eval
        self.register_buffer("shifts", torch.arange(bits), persistent=False)
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    @property
    def codes(self) -> Tensor:
        """The bits of every code (K, bits), bool, lowest first."""
        return self._bits(torch.arange(self.num_codes, device=self.shifts.device))

    def binary_entropy(self, logits: Tensor) -> Tensor:
        """Entropy (nats) of the bits together (...)."""
        return bit_entropy(logits).sum(-1)

    def calc_aux_loss(self, logits: Tensor, reduce_aux_kl_loss: bool = True) -> Tensor:
        """What the divergence from uniform codes exceeds the threshold by: its mean, or one number per code."""
        excess = F.relu(self.bits * LN2 - self.binary_entropy(logits) - self.kl_loss_threshold)
        return excess.sum() / max(1, excess.numel()) if reduce_aux_kl_loss else excess

    def log_prob(
        self, logits: Tensor, *, indices: Tensor | None = None, one_hot: Tensor | None = None, sum_bits: bool = True
    ) -> Tensor:
        """Log probability of the codes (...), or of each of their bits; give `indices` or `one_hot`."""
        require((indices is None) != (one_hot is None), "give indices or one_hot, one of them")
        indices = indices if one_hot is None else one_hot.argmax(-1)
        assert indices is not None
        log_probs = F.logsigmoid(torch.where(self._bits(indices), logits, -logits))
        return log_probs.sum(-1) if sum_bits else log_probs

    def forward(
        self,
        logits: Tensor,
        temperature: float = 1.0,
        straight_through: bool | None = None,
        calc_aux_loss: bool | None = None,
        deterministic: bool | None = None,
        return_indices: bool = False,
        reduce_aux_kl_loss: bool = True,
    ) -> tuple[Tensor, ...]:
        """(one-hot codes (..., K), [int64 indices (...),] loss).

        straight_through and calc_aux_loss default to train mode. temperature: of the draw only.
        """
        require(logits.shape[-1] == self.bits, f"logits have {logits.shape[-1]} bits, the mapper takes {self.bits}")
        straight_through = self.training if straight_through is None else straight_through
        calc_aux_loss = self.training if calc_aux_loss is None else calc_aux_loss
        if deterministic is None:
            deterministic = self.deterministic_on_eval and not self.training
        with torch.no_grad():
            probs = (logits / temperature).sigmoid()
            on = probs > 0.5 if deterministic else probs.bernoulli() > 0
            indices = codes_of_bits(on, self.shifts)
            one_hot = probs.new_zeros((*indices.shape, self.num_codes), dtype=torch.float32)
            one_hot.scatter_(-1, indices[..., None], 1.0)
        if straight_through:
            one_hot = gradient.straight_through(code_log_probs(logits).exp(), one_hot)
        loss = self.calc_aux_loss(logits, reduce_aux_kl_loss) if calc_aux_loss else self.zero
        return (one_hot, indices, loss) if return_indices else (one_hot, loss)

    def _bits(self, indices: Tensor) -> Tensor:
        return ((indices[..., None] >> self.shifts) & 1).bool()
