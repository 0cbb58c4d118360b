"""Everything of a run up to its first step, looked at: `--dry-run`. Nothing is written.

Legend: B batch, D code depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from data import ImageDataset, TrainLoader
from data.dataset import Captioned, reading_notes
from runtime.errors import first_few
from training.experiment import BatchPlan
from training.optimization.optimizer import moments_per_parameter
from training.optimization.parallel import local
from training.stage import Batch, Part, Stage

MOST_PARTS = 5  # of a network, in its line
MOST_LABELS = 12


def dry_run_lines(
    stage: Stage, train_set: ImageDataset, val_set: ImageDataset, plan: BatchPlan, device: torch.device, seed: int
) -> Iterator[str]:
    """What a run would train, on what, in which memory; a batch is read and goes through the model once.

    Every rank must go through it to the end: the model's forward pass may ask the others.
    """
    yield from data_lines(train_set, val_set)
    yield (
        f"plan: {plan.total_steps} steps, {plan.steps_per_epoch} per epoch, of {plan.global_batch} images = "
        f"{plan.micro_batch} x {plan.world_size} processes x {plan.accumulation} micro-steps; validation every "
        f"{plan.test_steps} steps, checkpoint every {plan.save_steps}"
    )
    yield f"model: {stage.describe()}; {device}, {stage.precision.name}"
    yield from part_lines(stage.parts())
    batch = next(iter(TrainLoader(train_set, plan.micro_batch, seed=seed, device=device)))
    yield from batch_lines(batch, train_set)
    codes = stage.codes(batch)
    if codes is not None:
        yield f"  codes of it: {code_words(codes)}"
    loss, kept = loss_and_kept_bytes(stage, batch, device)
    yield f"loss of it: {loss:.4g}" + ("" if math.isfinite(loss) else ", which is not finite: training would stop")
    yield from memory_lines(stage, kept)
    yield from (f"warning: {line}" for line in reading_notes(train_set))


def data_lines(train_set: ImageDataset, val_set: ImageDataset) -> Iterator[str]:
    """The two splits, their images, classes and captions."""
    height, width = train_set.resolution
    size = f"{height} x {width}, {train_set.channels} channels"
    yield f"data: {train_set.name}, {len(train_set)} training and {len(val_set)} validation images, {size}"
    if train_set.num_classes > 1:
        count_Y = torch.bincount(train_set.labels_N, minlength=train_set.num_classes)
        yield (
            f"  {train_set.num_classes} classes ({first_few(train_set.class_names, 5)}), "
            f"{int(count_Y.min())} to {int(count_Y.max())} training images each"
        )
    if train_set.tokenizer is not None:
        yield f"  captions, in tokens of a vocabulary of {train_set.tokenizer.vocab_size}"
    elif isinstance(train_set, Captioned):
        yield "  captions, without a tokenizer for them"


def part_lines(parts: dict[str, Part]) -> Iterator[str]:
    """The parameters of every network, and of what it is made of, the largest first."""
    for name, part in parts.items():
        sizes = {child: _numbers(module) for child, module in part.module.named_children()}
        largest = sorted((child for child in sizes if sizes[child]), key=lambda child: -sizes[child])[:MOST_PARTS]
        inside = ", ".join(f"{child} {sizes[child]:,}" for child in largest)
        rest = _numbers(part.module) - sum(sizes[child] for child in largest)
        inside += f", other {rest:,}" if rest > 0 and inside else ""
        frozen = "" if part.optimizer else ", not trained"
        yield f"  {name}{frozen}: {_numbers(part.module):,} numbers" + (f" ({inside})" if inside else "")


def batch_lines(batch: Batch, dataset: ImageDataset) -> Iterator[str]:
    """Shape, type and range of everything in a batch; its labels by name, its first caption in words."""
    yield "a batch of one process:"
    for name, value in batch.items():
        low, high = (bound.item() for bound in value.aminmax())
        span = (
            f"{low:.3g} to {high:.3g}, mean {value.float().mean():.3g}"
            if value.is_floating_point()
            else f"{low} to {high}"
        )
        line = f"  {name}: {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}, {span}"
        if name == "label" and dataset.num_classes > 1:
            line += f": {first_few([dataset.class_names[number] for number in value.tolist()], MOST_LABELS)}"
        if name == "cond" and dataset.tokenizer is not None:
            line += f": {dataset.tokenizer.decode(value[0].tolist())!r}, ..."
        yield line


def code_words(codes_BHWD: Tensor) -> str:
    """Shape of codes, and how many different ones every depth has."""
    different = [len(codes.unique()) for codes in codes_BHWD.unbind(-1)]
    return f"{tuple(codes_BHWD.shape)}, {', '.join(map(str, different))} different ones by depth"


def loss_and_kept_bytes(stage: Stage, batch: Batch, device: torch.device) -> tuple[float, int]:
    """The loss of a micro-batch, and what its forward pass keeps for the backward pass.

    On a GPU that is what the allocator holds more than before. On a CPU it is the memory of the tensors that autograd
    saves; what recomputation keeps at the borders of its blocks is not among them.
    """
    on_gpu = device.type == "cuda"
    weights = {
        local(tensor).untyped_storage().data_ptr()
        for part in stage.parts().values()
        for tensor in (*part.module.parameters(), *part.module.buffers())
    }
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = local(tensor).untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    with nullcontext() if on_gpu else torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = stage.trial_loss(batch)
    held = torch.cuda.memory_allocated(device) - before if on_gpu else sum(kept.values())
    return float(loss.detach()), held


def memory_lines(stage: Stage, kept_bytes: int) -> Iterator[str]:
    """An estimate of the memory of a process, by what it is for."""
    parts, sizes = stage.parts().values(), dict[str, int]()
    sizes["weights"] = sum(_bytes(part.module) for part in parts)
    trained = [(part.optimizer, _bytes(part.module, only_trained=True)) for part in parts if part.optimizer]
    sizes["gradients"] = sum(size for _, size in trained)
    sizes["optimizer"] = sum(moments_per_parameter(optimizer) * size for optimizer, size in trained)
    if stage.keeps_average:
        average: Any = stage.objects()["ema"].state_dict()
        sizes["average"] = sum(local(value).nbytes for value in average.values() if isinstance(value, Tensor))
    sizes["kept for the backward pass"] = kept_bytes
    parts_of_it = ", ".join(f"{name} {_megabytes(size)}" for name, size in sizes.items())
    yield f"memory of a process, estimated: {_megabytes(sum(sizes.values()))} = {parts_of_it}"
    yield "  beyond it: PyTorch itself, the batches on their way, and what single operations need while they run"


def _numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def _bytes(module: nn.Module, only_trained: bool = False) -> int:
    """Of this rank's share."""
    tensors = [tensor for tensor in module.parameters() if tensor.requires_grad or not only_trained]
    return sum(local(tensor).nbytes for tensor in (*tensors, *(() if only_trained else module.buffers())))


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"
