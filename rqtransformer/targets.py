"""What stage 2 is trained towards, and the loss over it: hard codes, or soft targets (section 3.2.3 of the paper).

The gradient of the logits is the only other tensor of their size: targets and probabilities are worked out a chunk of
rows at a time, once, in the forward pass, and the gradient with them. (It does not take the place of the logits: they
are also the caller's, who may read them after the backward pass or go through it twice.)

Legend: B batch, H W grid, N = B*H*W positions, n rows of one chunk, D code depth, E code-vector size, K codebook size,
V vocabulary, L condition length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rqstack.triton_kernels import alike, trial_numbers, use_kernel
from rqtransformer.model import RQTransformerOutput
from rqtransformer.native import training

LOSS_TYPES = ("soft_target_cross_entropy", "cross_entropy")
# The published soft-target loss has this inside its logarithm.
SOFT_EPS = 1e-7
# Elements of one chunk: small enough for the caches and the page allocator of a CPU, large enough for a GPU.
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
# Probabilities below e to this power are as good as 0 in fp32, but products with 0 or e**-64 are normal numbers: where
# they are not, a CPU takes 10 to 40 times longer.
LOWEST_EXPONENT = -64.0


@dataclass
class Stage2LossConfig:
    """The `loss` section of a stage-2 YAML file.

    Attributes:
        type: soft_target_cross_entropy or cross_entropy.
        stochastic_codes: draw the codes from the soft distribution instead of taking the nearest ones.
        temp: temperature of that distribution, softmax(-squared distance / temp).
        txt_weight: weight of the loss of the condition ids, which only text-conditional models have.
        img_weight: weight of the loss of the codes, in every model.
        chunk (rows): of logits worked on at a time. null: chosen from the vocabulary.
    """

    type: str = "soft_target_cross_entropy"
    stochastic_codes: bool = True
    temp: float = 1.0
    txt_weight: float = 0.0
    img_weight: float = 1.0
    chunk: Optional[int] = None

    def validate(self) -> None:
        """Raises ValueError, naming the value and the valid ones."""
        if self.type not in LOSS_TYPES:
            raise ValueError(f"loss.type={self.type!r} must be one of {', '.join(LOSS_TYPES)}")
        if not self.temp > 0:
            raise ValueError(f"loss.temp={self.temp} must be above 0")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"loss.chunk={self.chunk} must be at least 1")


class TargetDistribution(Protocol):
    """A distribution over codes for every position and depth, available a few rows at a time."""

    def probabilities(self, start: int, end: int, depth: int) -> Tensor:
        """Rows start..end (raster order over batch and grid) of one depth: (n, up to V), fp32, each summing to 1."""
        ...


class SoftTargets:
    """softmax(-|residual - code vector|^2 / temp), worked out on demand (Eq. 12).

    Args:
        residual_BHWDE: what was left to quantize at each depth (`ImageTokenizer.get_latent_targets`).
        codebooks: the code vectors (K, E) of each depth.
        temp: temperature.
    """

    def __init__(self, residual_BHWDE: Tensor, codebooks: Sequence[Tensor], temp: float):
        self.residual_NDE = residual_BHWDE.detach().flatten(0, 2)
        self.codebooks_KE = [codebook.detach().float() for codebook in codebooks]
        self.temp = temp
        squares = {id(book): book.square().sum(1).neg() for book in self.codebooks_KE}
        self._negative_squares_K = [squares[id(book)] for book in self.codebooks_KE]

    def scores(self, start: int, end: int, depth: int) -> Tensor:
        """What the softmax is of, (n, K) fp32. The residual's own square is the same for all codes and drops out."""
        residual_nE = self.residual_NDE[start:end, depth].float()
        with torch.autocast(residual_nE.device.type, enabled=False):
            return torch.addmm(
                self._negative_squares_K[depth],
                residual_nE,
                self.codebooks_KE[depth].T,
                alpha=2 / self.temp,
                beta=1 / self.temp,
            )

    def probabilities(self, start: int, end: int, depth: int) -> Tensor:
        """See `TargetDistribution`."""
        scores_nK = self.scores(start, end, depth)
        # softmax without what underflows
        scores_nK -= scores_nK.amax(dim=-1, keepdim=True)
        weight_nK = scores_nK.clamp_(min=LOWEST_EXPONENT).exp_()
        return weight_nK.div_(weight_nK.sum(dim=-1, keepdim=True))


class DenseTargets:
    """Targets given as probabilities (B, H, W, D, V)."""

    def __init__(self, probs_BHWDV: Tensor):
        self.probs_NDV = probs_BHWDV.detach().flatten(0, 2)

    def probabilities(self, start: int, end: int, depth: int) -> Tensor:
        """See `TargetDistribution`."""
        return self.probs_NDV[start:end, depth].float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """(logits (N, D, V), codes (N, D), targets or None, rows per chunk) -> loss, code NLL, accuracy: (D,) each."""

    @staticmethod
    def forward(
        ctx: Any, logits_NDV: Tensor, codes_ND: Tensor, targets: TargetDistribution | None, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        # in fp16 the gradient is only then within range when the loss scale, known in the backward pass, is in it
        at_once = ctx.needs_input_grad[0] and logits_NDV.dtype != torch.float16
        sums_3D, ctx.gradient_NDV = _sums_and_gradient(logits_NDV, codes_ND, targets, chunk, at_once)
        ctx.save_for_backward(logits_NDV, codes_ND)
        ctx.targets, ctx.chunk = targets, chunk
        loss_D, nll_D, accuracy_D = (sums_3D / len(logits_NDV)).unbind(0)
        ctx.mark_non_differentiable(nll_D, accuracy_D)
        return loss_D, nll_D, accuracy_D

    @staticmethod
    def backward(
        ctx: Any, grad_loss_D: Tensor, _grad_nll: Tensor, _grad_accuracy: Tensor
    ) -> tuple[Tensor, None, None, None]:
        logits_NDV, codes_ND = ctx.saved_tensors
        scale_D = grad_loss_D / len(logits_NDV)
        gradient_NDV, ctx.gradient_NDV = ctx.gradient_NDV, None
        if gradient_NDV is None:  # fp16, or a second pass: the first one gave its own away
            _, gradient_NDV = _sums_and_gradient(logits_NDV, codes_ND, ctx.targets, ctx.chunk, True, scale_D)
        else:
            gradient_NDV.mul_(scale_D.unsqueeze(1))
        return gradient_NDV, None, None, None


def _sums_and_gradient(
    logits_NDV: Tensor,
    codes_ND: Tensor,
    targets: TargetDistribution | None,
    chunk: int,
    with_gradient: bool,
    scale_D: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sums over N of loss, code NLL and hits (3, D), and the gradient of scale * loss, softmax minus target."""
    num_rows, depth, _ = logits_NDV.shape
    sums_3D = torch.zeros(3, depth, device=logits_NDV.device, dtype=torch.float32)
    gradient_NDV = torch.empty_like(logits_NDV) if with_gradient else None
    fused = _kernel_serves(logits_NDV, codes_ND, targets)
    compiled = _compiled_serves(logits_NDV, codes_ND, targets, gradient_NDV)
    for d, start, end in _chunks(num_rows, depth, chunk):
        logits_nV, codes_n = logits_NDV[start:end, d], codes_ND[start:end, d]
        gradient_nV = None if gradient_NDV is None else gradient_NDV[start:end, d]
        scale = None if scale_D is None else scale_D[d]
        if fused:
            from rqtransformer.soft_target_triton import cross_entropy_rows

            scores_nK = targets.scores(start, end, d) if isinstance(targets, SoftTargets) else None
            eps = 0.0 if scores_nK is None else SOFT_EPS
            sums_3D[:, d] += cross_entropy_rows(logits_nV, codes_n, scores_nK, eps, gradient_nV, scale)
            continue
        if compiled:
            assert gradient_nV is not None, "`_compiled_serves` asks for a gradient"
            scores_nK = targets.scores(start, end, d) if isinstance(targets, SoftTargets) else None
            eps = 0.0 if scores_nK is None else SOFT_EPS
            rows_nV = logits_nV.float()
            slope_nV = gradient_nV if gradient_nV.dtype == torch.float32 else torch.empty_like(rows_nV)
            sums_3D[:, d] += training.cross_entropy_rows(rows_nV, codes_n, scores_nK, eps, slope_nV)
            if scale is not None:
                slope_nV.mul_(scale)
            if slope_nV is not gradient_nV:
                gradient_nV.copy_(slope_nV)
            continue
        target_nV = None if targets is None else targets.probabilities(start, end, d)
        at_place = gradient_nV if logits_nV.dtype == torch.float32 else None
        sums_3, slope_nV = _chunk(logits_nV.float(), codes_n, target_nV, with_gradient, at_place)
        sums_3D[:, d] += sums_3
        if scale is not None:
            slope_nV.mul_(scale)
        if gradient_nV is not None and at_place is None:
            gradient_nV.copy_(slope_nV)
    return sums_3D, gradient_NDV


def _kernel_serves(logits_NDV: Tensor, codes_ND: Tensor, targets: TargetDistribution | None) -> bool:
    """Whether the Triton kernel runs here and knows all of these."""
    if torch.compiler.is_compiling() or not use_kernel(loss_trial, logits_NDV.device):
        return False
    from rqtransformer.soft_target_triton import serves

    return _are_scores_of(targets, logits_NDV) and serves(logits_NDV, codes_ND)


def _compiled_serves(
    logits_NDV: Tensor, codes_ND: Tensor, targets: TargetDistribution | None, gradient_NDV: Tensor | None
) -> bool:
    """Whether the rows are those of a training step on a CPU that the compiled code knows."""
    known = gradient_NDV is not None and training.trains_widened(logits_NDV) and _are_scores_of(targets, logits_NDV)
    return known and logits_NDV.stride(-1) == 1 and codes_ND.dtype == torch.int64 and codes_ND.device.type == "cpu"


def _are_scores_of(targets: TargetDistribution | None, logits_NDV: Tensor) -> bool:
    """Whether the targets are codes, or the softmax of scores of no more codes than there are logits."""
    if targets is None:
        return True
    if type(targets) is not SoftTargets:
        return False
    return max(len(book_KE) for book_KE in targets.codebooks_KE) <= logits_NDV.shape[-1]


def loss_trial(device: torch.device) -> bool:
    """Whether the Triton kernel gives the sums and gradients of `_chunk` on this device."""
    from rqtransformer.soft_target_triton import cross_entropy_rows

    codes_n, scores_nK = torch.arange(0, 1000, 77, device=device), 9 * trial_numbers(13, 900, device=device, pace=0.41)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        logits_nV = 5 * trial_numbers(13, 1000, device=device, dtype=dtype)
        gradient_nV = torch.empty_like(logits_nV)
        for scores, eps in ((None, 0.0), (scores_nK, SOFT_EPS)):
            sums_3 = cross_entropy_rows(logits_nV, codes_n, scores, eps, gradient_nV)
            target_nV = None if scores is None else scores.softmax(dim=-1)
            expected_3, slope_nV = _chunk(logits_nV.float(), codes_n, target_nV, with_gradient=True)
            if not (alike(sums_3, expected_3, 1e-4) and alike(gradient_nV, slope_nV, tolerance)):
                return False
    return True


def _chunk(
    scores_nV: Tensor, codes_n: Tensor, target_nV: Tensor | None, with_gradient: bool, out_nV: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `_sums_and_gradient` adds up, of one chunk: (3,), and the gradient (n, V), in `out_nV` if it is there, or
    the exponentials."""
    best_n = scores_nV.amax(dim=-1)
    weight_nV = torch.sub(scores_nV, best_n.unsqueeze(1), out=out_nV).exp_()
    total_n = weight_nV.sum(dim=-1) + (0.0 if target_nV is None else SOFT_EPS)
    log_norm_n = best_n + total_n.log()
    code_score_n = scores_nV.gather(1, codes_n.unsqueeze(1)).squeeze(1)
    nll = (log_norm_n - code_score_n).sum()
    loss = nll
    if target_nV is not None:
        expected_n = (target_nV * scores_nV[:, : target_nV.shape[1]]).sum(dim=-1)
        loss = (target_nV.sum(dim=-1) * log_norm_n - expected_n).sum()
    if with_gradient:
        weight_nV.div_(total_n.unsqueeze(1))
        if target_nV is None:
            code_n1 = codes_n.unsqueeze(1)
            weight_nV.scatter_add_(1, code_n1, -torch.ones_like(code_n1, dtype=weight_nV.dtype))
        else:
            weight_nV[:, : target_nV.shape[1]] -= target_nV
    return torch.stack((loss, nll, (code_score_n == best_n).sum())), weight_nV


def cross_entropy_per_depth(
    logits_BHWDV: Tensor, codes_BHWD: Tensor, targets: TargetDistribution | None = None, chunk: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of logits against codes or soft targets, one number per depth, in nats per code.

    Args:
        logits_BHWDV: of any floating type; the arithmetic is fp32.
        codes_BHWD: int64 codes.
        targets: soft targets; None means the codes themselves.
        chunk: rows at a time; None chooses by the vocabulary and the device.

    Returns:
        (loss (D,), negative log-likelihood of the codes (D,), share of codes that have the highest logit (D,)). Only
        the first carries a gradient.
    """
    logits_NDV = logits_BHWDV.flatten(0, 2)
    if chunk is None:
        elements = CHUNK_ELEMENTS.get(logits_NDV.device.type, CHUNK_ELEMENTS["cuda"])
        chunk = max(1, elements // logits_NDV.shape[-1])
    return _ChunkedCrossEntropy.apply(logits_NDV, codes_BHWD.flatten(0, 2), targets, chunk)


@torch.no_grad()
def per_depth_statistics(logits_BHWDV: Tensor, codes_BHWD: Tensor) -> tuple[Tensor, Tensor]:
    """(Negative log-likelihood of the codes in nats, share of codes with the highest logit), each (D,)."""
    _, nll_D, accuracy_D = cross_entropy_per_depth(logits_BHWDV, codes_BHWD)
    return nll_D, accuracy_D


def condition_loss(cond_logits: Tensor, cond_BL: Tensor) -> Tensor:
    """Mean cross entropy of condition ids 1..L-1; images whose condition was dropped do not count."""
    null = cond_logits.shape[-1]
    targets = cond_BL[:, 1:].flatten()
    total = F.cross_entropy(cond_logits.float().flatten(0, 1), targets, ignore_index=null, reduction="sum")
    return total / (targets != null).sum().clamp(min=1)


def stage2_loss(
    output: RQTransformerOutput,
    codes_BHWD: Tensor,
    targets: TargetDistribution | None,
    cond: Tensor | None,
    config: Stage2LossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss and its parts, without waiting for the device.

    Args:
        output: of `RQTransformer.forward`.
        codes_BHWD: the codes the model was given.
        targets: needed for `soft_target_cross_entropy`.
        cond: condition ids (B, L); `output.cond`, where dropped conditions are marked, wins over it.
        config: type and weights.

    Returns:
        (loss, terms): scalars `loss`, `loss_img` and (text models) `loss_txt`, the last two not weighted, and per depth
        d `loss_depth_d`, `nll_depth_d` (of the given codes) and `accuracy_depth_d`.

    Raises:
        ValueError: for a configuration that is not valid, or soft targets that are missing.
    """
    config.validate()
    soft = config.type == "soft_target_cross_entropy"
    if soft and targets is None:
        raise ValueError("loss.type='soft_target_cross_entropy' needs targets (SoftTargets or DenseTargets)")
    loss_D, nll_D, accuracy_D = cross_entropy_per_depth(
        output.logits, codes_BHWD, targets if soft else None, config.chunk
    )
    loss_img = loss_D.mean()
    terms = {"loss_img": loss_img.detach()}
    loss = config.img_weight * loss_img
    if output.cond_logits is not None:
        used = output.cond if output.cond is not None else cond
        assert used is not None, "predictions of condition ids need the ids"
        loss_txt = condition_loss(output.cond_logits, used)
        terms["loss_txt"] = loss_txt.detach()
        loss = loss + config.txt_weight * loss_txt
    for name, values_D in (("loss", loss_D.detach()), ("nll", nll_D), ("accuracy", accuracy_D)):
        terms.update({f"{name}_depth_{d}": value for d, value in enumerate(values_D.unbind(0))})
    return loss, {"loss": loss.detach(), **terms}


def _chunks(num_rows: int, depth: int, chunk: int) -> Iterator[tuple[int, int, int]]:
    """(Depth, first row, row behind the last) of every chunk."""
    for d in range(depth):
        for start in range(0, num_rows, chunk):
            yield d, start, min(start + chunk, num_rows)
