"""Metrics of a whole split, exact over all ranks: every image counts once, whatever the batch size or rank count.

Legend: B batch, C channels, H W image or code grid, D code depth, K codebook size, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rqstack.quantizers.usage import CodeUsage
from rqtransformer import RQTransformer
from rqtransformer.targets import per_depth_statistics
from rqvae import RQVAE
from rqvae.losses.image_terms import WeightedTerm
from runtime import distributed
from runtime.precision import Precision
from training.optimization.parallel import in_step
from training.stages.code_counts import CodeCounts
from training.stages.conditions import condition_of
from training.stages.training_codes import nearest_codes


class _Sums:
    """Named float64 sums over images, added up over ranks in one collective.

    Names and lengths are declared, so that a rank without images takes part like the others.
    """

    def __init__(self, device: torch.device, lengths: dict[str, int]) -> None:
        zeros = torch.zeros(1 + sum(lengths.values()), dtype=torch.float64, device=device)
        self._count, *values = zeros.split([1, *lengths.values()])
        self._values = dict(zip(lengths, values, strict=True))

    def count(self, num_images: int) -> None:
        """Counts images of this rank."""
        self._count += num_images

    def add(self, name: str, value: Tensor) -> None:
        """Adds a sum over images: a scalar, or one number per depth."""
        self._values[name] += value.detach().double()

    def means(self) -> dict[str, Tensor]:
        """Sums over all ranks divided by the images of all ranks; a length of 1 gives a scalar."""
        packed = distributed.all_reduce_sum_(torch.cat([self._count, *self._values.values()])).cpu()
        count, *values = packed.split([1, *(len(value) for value in self._values.values())])
        return {name: (value / count).squeeze(0) for name, value in zip(self._values, values, strict=True)}


@torch.no_grad()
def validate_stage1(
    model: RQVAE,
    batches: Iterable[dict[str, Tensor]],
    device: torch.device,
    precision: Precision,
    image_terms: Sequence[WeightedTerm] = (),
) -> dict[str, Any]:
    """Reconstruction error (also with 1..D codes), commitment, code usage and further distances of a split.

    Args:
        batches: this rank's share of the split, every image once (`data.EvalLoader`).
        image_terms: the distances beside the pixels', such as LPIPS.

    Returns:
        Means over all images of all ranks. Entry d of `recon_mse_by_depth` is the mean squared error, on the [-1, 1]
        scale, of the decoded sum of codes 0..d; `recon_mse` is its last entry. Losses are called as in training.
    """
    model.eval()
    depth = len(model.quantizer.num_codes)
    lengths = {"loss_latent": 1, "recon_l1": 1, "recon_mse_by_depth": max(1, depth)}
    sums = _Sums(device, lengths | {f"loss_{term.name}": 1 for term in image_terms})
    usage = CodeUsage(depth, model.quantizer.num_codes, device) if depth else None
    for batch in batches:
        image_BCHW = batch["image"].to(device)
        sums.count(len(image_BCHW))
        with precision.autocast():
            recon_BCHW, quantized = model(image_BCHW)
            partial = [model.decode_partial_code(quantized.codes, d, "add") for d in range(depth - 1)]
        if usage is not None:
            usage.update(quantized.codes)
        sums.add("loss_latent", quantized.loss * len(image_BCHW))
        sums.add("recon_l1", (recon_BCHW.float() - image_BCHW).abs().flatten(1).mean(1).sum())
        errors = [_squared_error(decoded_BCHW, image_BCHW) for decoded_BCHW in [*partial, recon_BCHW]]
        sums.add("recon_mse_by_depth", torch.stack(errors))
        for term in image_terms:
            sums.add(
                f"loss_{term.name}", term.distance(recon_BCHW.float(), image_BCHW).float().mean() * len(image_BCHW)
            )
    means = sums.means()
    recon_mse_by_depth = means.pop("recon_mse_by_depth").reshape(-1).tolist()
    metrics: dict[str, Any] = {name: value.item() for name, value in means.items()}
    metrics |= {"recon_mse_by_depth": recon_mse_by_depth, "recon_mse": recon_mse_by_depth[-1]}
    # what training minimises, under its name
    metrics["loss_recon"] = metrics["recon_mse" if model.config.loss_type == "mse" else "recon_l1"]
    return metrics if usage is None else {**metrics, **usage_metrics(usage)}


def _squared_error(decoded_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
    """Mean squared error of each image, summed over the batch."""
    return (decoded_BCHW.float() - image_BCHW).square().flatten(1).mean(1).sum()


def usage_metrics(usage: CodeUsage) -> dict[str, list[float]]:
    """Perplexity, used fraction, dead codes and noted restarts, each a list over depths, summed over all ranks."""
    return {f"{name}_by_depth": values.tolist() for name, values in usage.reduce().summary().items()}


@torch.no_grad()
def validate_stage2(
    model: RQTransformer,
    tokenizer: RQVAE,
    batches: Iterable[dict[str, Tensor]],
    device: torch.device,
    precision: Precision,
    code_counts: CodeCounts,
) -> dict[str, Any]:
    """Negative log-likelihood (nats per code) and accuracy of the hard codes, per depth, beside two baselines.

    Args:
        code_counts: of the training codes, whose frequencies are the unigram baseline. Empty ones (in an evaluation,
            where nothing was trained) are filled from this split.

    Returns:
        Means over all positions: `nll`, `accuracy` and `unigram_nll`, each also as a list over depths (`*_by_depth`),
        `uniform_nll`, and `cond_nll` for text.
    """
    model.eval()
    depth, has_text = len(code_counts.sizes), model.config.block_size_cond > 1
    sums = _Sums(device, {"nll": depth, "accuracy": depth} | ({"cond_nll": 1} if has_text else {}))
    split_counts = CodeCounts(code_counts.sizes, device)
    idle_BHWD = torch.zeros(1, *model.config.block_size, dtype=torch.long, device=device)

    def idle() -> None:
        with precision.autocast():
            model(idle_BHWD, tokenizer)

    for batch in in_step(model, batches, idle, device):
        cond = condition_of(model, batch, device)
        codes_BHWD = nearest_codes(tokenizer, batch, device)
        sums.count(len(codes_BHWD))
        with precision.autocast():
            output = model(codes_BHWD, tokenizer, cond)
        nll_D, accuracy_D = per_depth_statistics(output.logits, codes_BHWD)
        sums.add("nll", nll_D * len(codes_BHWD))
        sums.add("accuracy", accuracy_D * len(codes_BHWD))
        split_counts.add(codes_BHWD)
        if output.cond_logits is not None and cond is not None:
            loss = torch.nn.functional.cross_entropy(output.cond_logits.float().flatten(0, 1), cond[:, 1:].flatten())
            sums.add("cond_nll", loss * len(codes_BHWD))
    split_counts.reduce()
    if not code_counts.total_DK.any():
        code_counts.load_state_dict(split_counts.state_dict())
    means = {**sums.means(), "unigram_nll": code_counts.unigram_nll(split_counts)}
    sizes = model.config.vocab_sizes
    return {**_by_depth(means), "uniform_nll": sum(math.log(size) for size in sizes) / len(sizes)}


def _by_depth(means: dict[str, Tensor]) -> dict[str, Any]:
    """Means over depths and, of what has some, the depths themselves."""
    metrics: dict[str, Any] = {}
    for name, value in means.items():
        metrics[name] = value.mean().item()
        if name != "cond_nll":
            metrics[f"{name}_by_depth"] = value.reshape(-1).tolist()
    return metrics
