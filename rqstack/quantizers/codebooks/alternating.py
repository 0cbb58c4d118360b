"""Training a codebook by its own optimizer, in turns with the rest of the model.

Legend: N vectors, E code-vector size, K codebook size.

Huh et al., arXiv 2305.08842, alternating optimisation: the code vectors first move to the vectors that chose them, and
the model is trained against code vectors that hold still.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.codebooks.restart_draw import CodedVectors

OptimizerMaker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def own_optimizer(learning_rate: float | None, make: OptimizerMaker | None = None) -> OptimizerMaker | None:
    """What makes the optimizer of a codebook: `make`, or plain SGD with a rate, or None where neither is given.

    Plain SGD has no state that a checkpoint would have to hold. ValueError for a rate that is not positive.
    """
    if learning_rate is None:
        return make
    if learning_rate <= 0:
        raise ValueError(f"inplace_lr must be positive, got {learning_rate}")
    return functools.partial(torch.optim.SGD, lr=learning_rate) if make is None else make


def codebook_gradients(
    parameters: Sequence[Tensor],
    code_vectors: Callable[[], Sequence[Tensor]],
    batches: Sequence[Sequence[CodedVectors]],
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Mean squared distance between vectors and the code vectors they chose, 0-dim, and its gradients.

    code_vectors: the (K, E) code vectors of every codebook, computed from `parameters`, whose `grad` and
    `requires_grad` stay as they are. batches: the vectors that chose from each codebook; they get no gradient, and rows
    that are not valid do not count. Loss and gradients (zero where unused) are those over the rows of all processes.
    The third result says whether there is any row.
    """
    needed = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            pairs = [(weight, batch) for weight, own in zip(code_vectors(), batches, strict=True) for batch in own]
            error = torch.stack([_squared_error(weight, batch) for weight, batch in pairs]).sum()
            count = torch.stack([batch.valid_N.sum() * batch.x_NE.shape[1] for _, batch in pairs]).sum().float()
            sync.all_reduce_sum(count)
            loss = error / count.clamp(min=1)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for parameter, before in zip(parameters, needed, strict=True):
            parameter.requires_grad_(before)
    grads = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, found, strict=True)]
    loss = loss.detach()
    sync.all_reduce_sum(loss, *grads)
    return loss, grads, count > 0


def alternating_step(
    optimizer: torch.optim.Optimizer,
    code_vectors: Callable[[], Sequence[Tensor]],
    batches: Sequence[Sequence[CodedVectors]],
) -> Tensor:
    """One optimizer step on `codebook_gradients`; returns its loss before the step. Without any row, no step.

    The optimizer's parameters keep the gradients they have from elsewhere; those take no part.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    loss, grads, any_row = codebook_gradients(parameters, code_vectors, batches)
    if any_row:
        held = [parameter.grad for parameter in parameters]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        for parameter, grad in zip(parameters, held, strict=True):
            parameter.grad = grad
    return loss


def _squared_error(weight_KE: Tensor, batch: CodedVectors) -> Tensor:
    codes_N = torch.where(batch.valid_N, batch.codes_N, 0)
    distance_NE = F.embedding(codes_N, weight_KE.float()) - batch.x_NE.detach().float()
    return torch.where(batch.valid_N[:, None], distance_NE, 0.0).square().sum()
