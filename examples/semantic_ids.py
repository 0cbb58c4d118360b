"""Semantic IDs: every item's embedding becomes a short tuple of codes, so that similar items share their first codes.

An MLP leads the embedding (a text's, a picture's, a session's) to a small space, a residual quantizer writes it as D
codes there, and a second MLP gives it back. Items that meet in all D codes are told apart by one more number, counted
from 0. Such IDs are what generative retrieval predicts in place of item numbers (Rajput et al., Recommender Systems
with Generative Retrieval, 2023, 2305.05065).

`python -m examples.semantic_ids EMBEDDINGS.npy IDS.npy`: (N, F) numbers -> int64 (N, D + 1), and one JSON line.

Legend: N items, F features of an embedding, C size of a code vector, D code depth, K codes per depth.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rqstack.printable import printable
from rqstack.quantizers import CodeUsage, QuantizerOutput, ResidualVectorQuantizer


@dataclass(frozen=True)
class Settings:
    """Of model and training; the defaults suit some ten thousand items."""

    depth: int = 3
    num_codes: int = 256
    code_dim: int = 32
    hidden: int = 256
    steps: int = 2000
    batch_size: int = 1024
    lr: float = 1e-3
    commitment: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """How good the IDs are.

    Attributes:
        items: N.
        explained: share of the embeddings' variance that the codes keep.
        collision_rate: share of the items whose D codes another item has too.
        largest_collision: items that share one tuple.
        usage, perplexity: of every depth: share of the K codes in use, and the number that equally frequent codes with
            the same entropy would be.
    """

    items: int
    explained: float
    collision_rate: float
    largest_collision: int
    usage: list[float]
    perplexity: list[float]


class EmbeddingQuantizer(nn.Module):
    """Embedding -> codes -> embedding."""

    def __init__(self, features: int, settings: Settings):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(features, settings.hidden), nn.GELU(), nn.Linear(settings.hidden, settings.code_dim)
        )
        self.quantizer = ResidualVectorQuantizer(settings.code_dim, settings.num_codes, settings.depth)
        self.decoder = nn.Sequential(
            nn.Linear(settings.code_dim, settings.hidden), nn.GELU(), nn.Linear(settings.hidden, features)
        )

    def forward(self, items_NF: Tensor) -> tuple[Tensor, QuantizerOutput]:
        """Embeddings given back from their codes, and the quantizer's result."""
        found: QuantizerOutput = self.quantizer(self.encoder(items_NF))
        return self.decoder(found.quantized), found


def train(items_NF: Tensor, settings: Settings) -> EmbeddingQuantizer:
    """Fits the model to standardised embeddings, on their device; batches depend on the seed only."""
    torch.manual_seed(settings.seed)
    model = EmbeddingQuantizer(items_NF.shape[1], settings).to(items_NF.device)
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        batch_NF = items_NF[torch.randint(len(items_NF), (settings.batch_size,), device=items_NF.device)]
        restored_NF, found = model(batch_NF)
        loss = (restored_NF - batch_NF).square().mean() + settings.commitment * found.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        model.quantizer.update_codebook()  # once per step, after the look-ups of that step
    return model.eval()


@torch.no_grad()
def assign(model: EmbeddingQuantizer, items_NF: Tensor) -> tuple[Tensor, Report]:
    """IDs (N, D + 1) of all items, the last column telling apart those that share the others; and how good they are."""
    restored_NF, found = model(items_NF)
    quantizer = model.quantizer
    usage = CodeUsage(len(quantizer.num_codes), quantizer.num_codes, items_NF.device)
    usage.update(found.codes)
    summary = usage.summary()
    tie_N, sizes = break_ties(found.codes)
    error = (restored_NF - items_NF).square().sum() / (items_NF - items_NF.mean(0)).square().sum()
    report = Report(
        items=len(items_NF),
        explained=1 - float(error),
        collision_rate=float(sizes[sizes > 1].sum()) / len(items_NF),
        largest_collision=int(sizes.max()),
        usage=[round(float(share), 4) for share in summary["used_fraction"]],
        perplexity=[round(float(number), 2) for number in summary["perplexity"]],
    )
    return torch.cat([found.codes, tie_N.unsqueeze(1)], dim=1), report


def break_ties(codes_ND: Tensor) -> tuple[Tensor, Tensor]:
    """For every item how many before it have the same codes (N,), and how many items each tuple has."""
    _, group_N, sizes = codes_ND.unique(dim=0, return_inverse=True, return_counts=True)
    order = group_N.argsort(stable=True)
    first_of_group = sizes.cumsum(0) - sizes
    tie_N = torch.empty_like(group_N)
    tie_N[order] = torch.arange(len(group_N), device=group_N.device) - first_of_group[group_N[order]]
    return tie_N, sizes


def read_embeddings(path: Path) -> Tensor:
    """A .npy file of numbers (N, F) -> fp32, every feature with mean 0 and deviation 1.

    Raises:
        ValueError: for what is no such file.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or len(values) < 2 or values.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold one array of numbers (items, features), at least two items")
    items_NF = torch.from_numpy(values.astype(np.float32))
    if not items_NF.isfinite().all():
        raise ValueError(f"{path} holds numbers that are not finite")
    deviation_F = items_NF.std(0)
    return (items_NF - items_NF.mean(0)) / torch.where(deviation_F > 0, deviation_F, 1.0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.semantic_ids",
        description=(__doc__ or "").split("\n")[0],
        epilog="example: python -m examples.semantic_ids embeddings.npy ids.npy",
        allow_abbrev=False,
    )
    parser.add_argument("embeddings", type=Path, help=".npy file of numbers (items, features)")
    parser.add_argument("ids", type=Path, help="where to write them: int64 (items, depth + 1), .npy")
    defaults = Settings()
    for name in ("depth", "num_codes", "steps", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    flags = parser.parse_args()
    for name, least in (("depth", 1), ("num_codes", 2), ("steps", 1), ("seed", 0)):
        if getattr(flags, name) < least:
            parser.error(f"--{name.replace('_', '-')}={getattr(flags, name)} must be at least {least}")
    if flags.ids.suffix != ".npy" or not flags.ids.parent.is_dir():
        parser.error(f"{printable(flags.ids)} must be a name ending in .npy in a folder that exists")
    try:
        items_NF = read_embeddings(flags.embeddings)
    except ValueError as error:
        parser.error(printable(error))
    settings = Settings(depth=flags.depth, num_codes=flags.num_codes, steps=flags.steps, seed=flags.seed)
    ids, report = assign(train(items_NF, settings), items_NF)
    np.save(flags.ids, ids.numpy())
    print(printable(json.dumps(vars(report))))


if __name__ == "__main__":
    main()
