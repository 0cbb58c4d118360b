"""What a step of stage 2 costs on many devices: a model of compute, communication and memory.

Every formula is stated in docs/scaling.md and compared with what can be counted by `benchmarks.scaling_checks`.

Legend: P parameters, N devices, C width, T = H*W positions, S positions of the body, D code depth, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.stack import TransformerStack

FP32, BF16 = 4, 2


@dataclass(frozen=True)
class Device:
    """Stated figures of one device and of what connects them; bandwidths are per device and direction.

    Attributes:
        peak_tflops: of 16-bit products. efficiency: the share of it that the step's products reach.
        memory_gb: capacity. hbm_gb_s: bandwidth of that memory.
        per_node: devices of one node. intra_gb_s, inter_gb_s: bandwidth within a node and between nodes.
        latency_us: of one hop of a collective.
    """

    peak_tflops: float = 989.0
    efficiency: float = 0.5
    memory_gb: float = 80.0
    hbm_gb_s: float = 3350.0
    per_node: int = 8
    intra_gb_s: float = 400.0
    inter_gb_s: float = 50.0
    latency_us: float = 5.0

    def seconds(self, flops: float) -> float:
        """Of so many FLOPs in products."""
        return flops / (self.peak_tflops * 1e12 * self.efficiency)

    def ring(self, num_bytes: float, num_devices: int, passes: int = 1) -> float:
        """Seconds of an all-gather or a reduce-scatter of `num_bytes` in all (an all-reduce is two passes).

        Each device sends (N - 1) / N of the bytes per pass, in N - 1 hops. Between nodes there are as many rings as
        devices in a node, each over another device's link, so that these links share the bytes.
        """
        if num_devices == 1:
            return 0.0
        bandwidth, hops = self.intra_gb_s, num_devices - 1
        if num_devices > self.per_node:
            bandwidth = min(bandwidth, self.per_node * self.inter_gb_s)
        return passes * (hops / num_devices * num_bytes / (bandwidth * 1e9) + hops * self.latency_us * 1e-6)


@dataclass(frozen=True)
class Transformer:
    """Counts of one model, taken from its parameters on the meta device.

    Attributes:
        params, block_params: of the whole model, of one block; num_blocks: of body and head.
        forward: FLOPs of one image's forward pass, twice the multiply-adds; of its blocks alone: block_forward.
        targets: FLOPs of one image's soft targets, which have no backward pass but are worked out twice.
        block_bytes: what the backward pass needs of all blocks, per image; of one block: largest_block_bytes.
        block_inputs: the inputs of all blocks, which recomputation keeps; logits: elements per image.
    """

    params: int
    block_params: int
    num_blocks: int
    forward: float
    block_forward: float
    targets: float
    block_bytes: int
    largest_block_bytes: int
    block_inputs: int
    logits: int


def describe(arch: RQTransformerConfig, element: int = BF16, dropout: bool = True, soft: bool = True) -> Transformer:
    """Counts of the model of an `arch` section; `element`: bytes of a number in products (bf16 or fp32)."""
    with torch.device("meta"):
        model = RQTransformer(arch)
    positions, depth, width = model.num_positions, model.depth, arch.embed_dim
    body_tokens = arch.block_size_cond + positions - 1
    stacks = [(model.body_transformer, body_tokens, body_tokens), (model.head_transformer, positions * depth, depth)]
    blocks = sum(stack_flops(stack, tokens, length) for stack, tokens, length in stacks)
    vocab = max(arch.vocab_sizes)
    rest = positions * depth * width * vocab
    rest += 0 if model.input_mlp is None else (positions - 1) * arch.code_dim * width
    rest += 0 if model.head_mlp is None else positions * (depth - 1) * arch.code_dim * width
    rest += 0 if model.cond_classifier is None else (arch.block_size_cond - 1) * width * arch.vocab_size_cond
    per_block = [tokens * token_bytes(stack, arch, element, dropout) for stack, tokens, _ in stacks if stack.blocks]
    counts = [len(stack.blocks) for stack, _, _ in stacks if stack.blocks]
    return Transformer(
        params=sum(parameter.numel() for parameter in model.parameters()),
        block_params=sum(parameter.numel() for parameter in model.blocks[0].parameters()),
        num_blocks=len(model.blocks),
        forward=blocks + 2 * rest,
        block_forward=blocks,
        targets=2 * 2 * positions * depth * vocab * arch.code_dim if soft else 0,
        block_bytes=sum(count * size for count, size in zip(counts, per_block)),
        largest_block_bytes=max(per_block),
        block_inputs=sum(len(stack.blocks) * tokens * width * FP32 for stack, tokens, _ in stacks),
        logits=positions * depth * vocab,
    )


def stack_flops(stack: TransformerStack, tokens: int, length: int) -> float:
    """Forward FLOPs of a stack on `tokens` tokens in sequences of `length`; attention is counted without its mask."""
    total = 0.0
    for block in stack.blocks:
        weights = sum(parameter.numel() for parameter in block.parameters() if parameter.dim() == 2)
        total += 2 * tokens * (weights + 2 * length * block.attn.num_heads * block.attn.head_dim)
    return total


def token_bytes(stack: TransformerStack, arch: RQTransformerConfig, element: int, dropout: bool) -> int:
    """What the backward pass of one block needs per token.

    The residual stream stays fp32 and is kept before each norm, with mean and deviation. The first norm's output is
    kept once in fp32, and once for each of query, key and value where autocast rounds it for them. Then query, key,
    value, the attention's output and its normaliser per head, the second norm's output, the hidden layer before and
    after its activation, and a byte per element for each dropout.
    """
    block, width = stack.blocks[0], arch.embed_dim
    query = block.attn.num_heads * block.attn.head_dim
    keys = block.attn.kv_heads * block.attn.head_dim
    widened = block.mlp[0]
    assert isinstance(widened, nn.Linear)
    hidden = widened.out_features
    copies = 1 if element == FP32 else 3
    rounded = copies * width + 2 * query + 2 * keys + width + 2 * hidden
    return FP32 * (2 * width + 4 + block.attn.num_heads) + element * rounded + (2 * width if dropout else 0)


@dataclass(frozen=True)
class Step:
    """One optimizer step on `devices` devices.

    Attributes:
        micro, accumulation: images per device and micro-step, micro-steps.
        memory: bytes per device, by what they hold. compute, communication, seconds: of the step.
        sent: bytes each device sends. images, flops: of the step over all devices, recomputation not counted.
    """

    parallel: str
    recompute: bool
    devices: int
    micro: int
    accumulation: int
    memory: dict[str, float]
    compute: float
    communication: float
    seconds: float
    sent: float
    images: int
    flops: float

    @property
    def total_memory(self) -> float:
        """Bytes per device."""
        return sum(self.memory.values())

    def utilisation(self, device: Device) -> float:
        """Model FLOPs over what the devices could do at their peak."""
        return self.flops / (self.seconds * self.devices * device.peak_tflops * 1e12)


def state_bytes(params: int, devices: int, ema: bool) -> dict[str, float]:
    """fp32 parameters, gradients, two Adam moments and the average: whole (`devices=1`) or this device's share."""
    sizes = {"parameters": 1, "gradients": 1, "moments": 2, "average": 1 if ema else 0}
    return {name: FP32 * count * params / devices for name, count in sizes.items()}


def volumes(model: Transformer, parallel: str, accumulation: int, element: int = BF16) -> dict[str, float]:
    """Bytes that the collectives of one step carry, over all devices together, without the ring's (N - 1) / N.

    DDP all-reduces fp32 gradients once. FSDP gathers blocks in the type of the products and the rest in fp32, for the
    forward and again for the backward pass of every micro-step, and reduce-scatters fp32 gradients once.
    """
    if parallel == "ddp":
        return {"all_reduce": FP32 * model.params}
    in_blocks = model.num_blocks * model.block_params
    gathered = element * in_blocks + FP32 * (model.params - in_blocks)
    return {"all_gather": 2 * accumulation * gathered, "reduce_scatter": FP32 * model.params}


def memory_of(
    model: Transformer,
    parallel: str,
    devices: int,
    micro: int,
    accumulation: int,
    recompute: bool,
    ema: bool,
    element: int = BF16,
) -> dict[str, float]:
    """Bytes per device by what they hold, at the peak of the backward pass."""
    memory = state_bytes(model.params, devices if parallel == "fsdp" else 1, ema)
    if parallel == "fsdp":
        root = model.params - model.num_blocks * model.block_params
        # a block at work and the next one on its way, the rest of the model, and the gradients of two blocks
        memory["gathered"] = 2 * model.block_params * (element + FP32) + 2 * FP32 * root
        if accumulation > 1:
            memory["unaveraged gradients"] = FP32 * model.params
    else:
        memory["rounded weights"] = element * model.params if element < FP32 else 0
    kept = model.block_inputs + model.largest_block_bytes if recompute else model.block_bytes
    memory["activations"] = micro * kept
    memory["logits and their gradient"] = 2 * micro * model.logits * element
    return memory


def step_cost(
    model: Transformer,
    device: Device,
    parallel: str,
    devices: int,
    batch: int,
    micro: int,
    recompute: bool = False,
    ema: bool = False,
    encoder: float = 0.0,
) -> Step:
    """The step of a global batch on so many devices.

    Args:
        micro: images per device and micro-step. encoder: FLOPs per image of the frozen stage 1.

    Raises:
        ValueError: when the batch does not divide.
    """
    if micro < 1 or batch % (micro * devices):
        raise ValueError(f"a batch of {batch} does not divide into micro-batches of {micro} on {devices} devices")
    accumulation = batch // (micro * devices)
    forward = device.seconds(micro * (model.forward + encoder + model.targets / 2))
    again = model.block_forward if recompute else 0.0
    backward = device.seconds(micro * (2 * model.forward + again + model.targets / 2))
    sizes = volumes(model, parallel, accumulation)
    share = devices if parallel == "fsdp" else 1
    # parameters, moments and gradients are read, parameters and moments written; the average is read and written
    optimizer = FP32 * (7 + 3 * ema) * model.params / share / (device.hbm_gb_s * 1e9)
    if parallel == "ddp":
        communication = device.ring(sizes["all_reduce"], devices, passes=2)
        exposed = max(0.0, communication - backward)
        seconds = accumulation * (forward + backward) + exposed + optimizer
    else:
        units = model.num_blocks + 1
        hops = (units - 1) * device.ring(0.0, devices)
        gather = device.ring(sizes["all_gather"] / (2 * accumulation), devices) + hops
        scatter = device.ring(sizes["reduce_scatter"], devices) + hops
        communication = 2 * accumulation * gather + scatter
        first = accumulation * max(forward, gather)
        second = (accumulation - 1) * max(backward, gather) + max(backward, gather + scatter)
        seconds = first + second + optimizer
    compute = accumulation * (forward + backward) + optimizer
    memory = memory_of(model, parallel, devices, micro, accumulation, recompute, ema)
    ring = (devices - 1) / devices
    sent = ring * sum(size * (2 if name == "all_reduce" else 1) for name, size in sizes.items())
    flops = batch * (3 * model.forward + model.targets + encoder)
    assert math.isfinite(seconds) and seconds > 0
    return Step(
        parallel, recompute, devices, micro, accumulation, memory, compute, communication, seconds, sent, batch, flops
    )
