"""What drawing one batch of code maps costs at least: floating-point operations and bytes, from the model's sizes.

Legend: B batch, T positions, D code depth, L condition length, C width, V vocabulary, S = L + T - 1 body positions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from rqtransformer import RQTransformer
from rqtransformer.attention import head_sizes


class Cost(NamedTuple):
    """flops: of all products (2 per multiply-add). bytes: weights and caches, each read or written once per use."""

    flops: float
    bytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> tuple[float, float]:
        """The two bounds of the roofline; the larger one is the least time possible."""
        return self.flops / flops_per_second, self.bytes / bytes_per_second


def decoding_cost(
    model: RQTransformer, batch_size: int, bytes_per_value: int, bytes_per_weight: float | None = None
) -> Cost:
    """Cost of `sample` for one batch with caches: T body steps (the first one over L positions), T x D head steps.

    Embedding look-ups, norms, activations and the draw are left out: they are small beside the products. Guidance runs
    every sample twice: pass 2 B.

    Args:
        bytes_per_value: of keys and values.
        bytes_per_weight: of the matrices, if that is another number.
    """
    config = model.config
    width, positions, depth = config.embed_dim, model.num_positions, model.depth
    condition = config.block_size_cond
    body, head = _weights(model.body_transformer), _weights(model.head_transformer)
    classifier = width * max(config.vocab_sizes)
    input_map = config.code_dim * width if model.input_mlp is not None else 0
    head_map = config.code_dim * width if model.head_mlp is not None else 0
    body_lengths = range(1, condition + positions)
    head_lengths = range(1, depth + 1)
    body_seen = config.body.n_layer * sum(body_lengths)
    head_seen = config.head.n_layer * sum(head_lengths) * positions
    body_heads, head_heads = head_sizes(width, config.body.block), head_sizes(width, config.head.block)
    scores = body_seen * body_heads[0] * body_heads[2] + head_seen * head_heads[0] * head_heads[2]
    products = (
        body * (condition + positions - 1)
        + input_map * (positions - 1)
        + (head + classifier) * positions * depth
        + head_map * positions * (depth - 1)
        + 2 * scores  # queries with keys, weights with values
    )
    weights = (
        body * positions
        + input_map * (positions - 1)
        + (head + classifier) * positions * depth
        + head_map * positions * (depth - 1)
    )
    body_row, head_row = body_heads[1] * body_heads[2], head_heads[1] * head_heads[2]
    read = 2 * (body_seen * body_row + head_seen * head_row)  # keys and values
    written = 2 * (
        config.body.n_layer * (condition + positions - 1) * body_row
        + config.head.n_layer * positions * depth * head_row
    )
    caches = bytes_per_value * batch_size * (read + written)
    return Cost(2.0 * batch_size * products, float((bytes_per_weight or bytes_per_value) * weights + caches))


def _weights(stack: nn.Module) -> int:
    """Number of values in the matrices of a stack."""
    return sum(parameter.numel() for parameter in stack.parameters() if parameter.ndim == 2)
