"""What drawing one batch of code maps costs at least: floating-point operations and bytes, from the model's sizes.

Legend: B batch, T positions, D code depth, L condition length, C width, V vocabulary, S = L + T - 1 body positions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from rqtransformer import RQTransformer


class Cost(NamedTuple):
    """flops: of all products (2 per multiply-add). bytes: weights and caches, each read or written once per use."""

    flops: float
    bytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> tuple[float, float]:
        """The two bounds of the roofline; the larger one is the least time possible."""
        return self.flops / flops_per_second, self.bytes / bytes_per_second


def decoding_cost(model: RQTransformer, batch_size: int, bytes_per_value: int) -> Cost:
    """Cost of `sample` for one batch with caches: T body steps (the first one over L positions), T x D head steps.

    Embedding look-ups, norms, activations and the draw are left out: they are small beside the products.
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
    body_scores = config.body.n_layer * width * sum(body_lengths)
    head_scores = config.head.n_layer * width * sum(head_lengths) * positions
    products = (
        body * (condition + positions - 1)
        + input_map * (positions - 1)
        + (head + classifier) * positions * depth
        + head_map * positions * (depth - 1)
        + 2 * (body_scores + head_scores)  # queries with keys, weights with values
    )
    read = (
        (body + input_map) * positions
        + (head + classifier) * positions * depth
        + head_map * positions * (depth - 1)
        + 2 * batch_size * (body_scores + head_scores)  # keys and values
    )
    written = 2 * batch_size * width * (
        config.body.n_layer * (condition + positions - 1) + config.head.n_layer * positions * depth
    )
    return Cost(2.0 * batch_size * products, float(bytes_per_value * (read + written)))


def _weights(stack: nn.Module) -> int:
    """Number of values in the matrices of a stack."""
    return sum(parameter.numel() for parameter in stack.parameters() if parameter.ndim == 2)
