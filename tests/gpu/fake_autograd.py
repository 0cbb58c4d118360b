"""Backward passes of fake CUDA tensors where there is no CUDA driver.

Torch's engine asks the driver for streams before it runs anything on a tensor that says it is on a GPU. The nodes of
the graph do not: this walks through them as the engine does (newest first, gradients summed before a node runs, fitted
to what the node expects) and calls them one by one.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

Slot = tuple[Node, int]  # a node, and which of its gradients
Hooks = dict[Slot, list[Callable[[Tensor], Tensor | None]]]


@contextmanager
def backward_without_driver() -> Iterator[None]:
    """Inside, `Tensor.backward`, `torch.autograd.backward` and `torch.autograd.grad` need no driver."""
    hooks: Hooks = defaultdict(list)

    def register_hook(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> None:
        hooks[_slot(tensor)].append(hook)

    def backward(tensors: Any, grad_tensors: Any = None, *unused: Any, **options: Any) -> None:
        assert not options.get("create_graph") and options.get("inputs") is None
        for leaf, grad in _run(_listed(tensors), _listed(grad_tensors), hooks, None).items():
            leaf.variable.grad = grad if leaf.variable.grad is None else leaf.variable.grad + grad

    def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> tuple[Tensor | None, ...]:
        assert not options.get("create_graph")
        wanted = [_slot(tensor) for tensor in _listed(inputs)]
        found = _run(_listed(outputs), _listed(grad_outputs), hooks, wanted)
        grads = tuple(found.get(slot) for slot in wanted)
        assert options.get("allow_unused") or all(value is not None for value in grads), "an input is not in the graph"
        return grads

    with (
        patch.object(torch.autograd, "backward", backward),
        patch.object(torch.autograd, "grad", grad),
        patch.object(Tensor, "register_hook", register_hook),
    ):
        yield


def _listed(value: Any) -> list[Any]:
    if value is None or isinstance(value, Tensor):
        return [] if value is None else [value]
    return list(value)


def _slot(tensor: Tensor) -> Slot:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


@torch.no_grad()
def _run(
    outputs: Sequence[Tensor], grad_outputs: Sequence[Tensor | None], hooks: Hooks, wanted: Iterable[Slot] | None
) -> dict[Any, Tensor]:
    """Gradients of the wanted slots, or (None) of the nodes of all leaves."""
    roots = [_slot(output) for output in outputs]
    useful = _ancestors([node for node, _ in roots], None if wanted is None else {node for node, _ in wanted})
    arrived: dict[Node, dict[int, Tensor]] = defaultdict(dict)
    waiting: list[tuple[int, int, Node]] = []
    order = itertools.count()
    found: dict[Any, Tensor] = {}

    def send(slot: Slot, gradient: Tensor) -> None:
        node, index = slot
        if node not in useful:
            return
        if node not in arrived:
            heapq.heappush(waiting, (-_age(node), next(order), node))
        gradient, before = _fitted(gradient, node, index), arrived[node].get(index)
        arrived[node][index] = gradient if before is None else before + gradient

    for slot, output, given in itertools.zip_longest(roots, outputs, grad_outputs):
        send(slot, torch.ones_like(output) if given is None else given)
    targets = set() if wanted is None else set(wanted)
    while waiting:
        node = heapq.heappop(waiting)[2]
        gradients = arrived.pop(node)
        for index, gradient in gradients.items():
            for hook in hooks.get((node, index), ()):
                gradient = _or(hook(gradient), gradient)
            gradients[index] = gradient
            if (node, index) in targets:
                found[node, index] = gradient
        if hasattr(node, "variable"):  # a leaf
            found.setdefault(node, gradients[0])
        elif wanted is None or any(next_node in useful for next_node, _ in node.next_functions):
            inputs = [gradients.get(index) for index in range(len(node._input_metadata))]
            for slot, gradient in zip(node.next_functions, _listed(_call(node, inputs))):
                if slot[0] is not None and gradient is not None:
                    send(slot, gradient)
    return found


def _call(node: Any, gradients: list[Tensor | None]) -> Any:
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        zeros = [
            torch.zeros(tuple(meta.shape), dtype=meta.dtype, device=meta.device) if gradient is None else gradient
            for gradient, meta in zip(gradients, node._input_metadata)
        ]
        return node.apply(*zeros)
    return node(*gradients)


def _ancestors(roots: Sequence[Node], wanted: set[Node] | None) -> set[Node]:
    """All nodes that the roots lead to; with `wanted`, those of them that lead to one of these."""
    followers: dict[Node, list[Node]] = defaultdict(list)
    seen, stack = set(roots), list(roots)
    while stack:
        node = stack.pop()
        for child, _ in node.next_functions:
            if child is not None:
                followers[child].append(node)
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
    if wanted is None:
        return seen
    useful = wanted & seen
    stack = list(useful)
    while stack:
        for follower in followers[stack.pop()]:
            if follower not in useful:
                useful.add(follower)
                stack.append(follower)
    return useful


def _age(node: Any) -> int:
    """A node is made after all that it leads to; leaves are never."""
    return -1 if hasattr(node, "variable") else node._sequence_nr()


def _fitted(gradient: Tensor, node: Any, index: int) -> Tensor:
    """In the shape and type that the node expects; on another device it is an error, as the engine has it."""
    meta = node._input_metadata[index]
    shape = tuple(meta.shape)
    assert gradient.device == meta.device, f"{node.name()} has a gradient on {gradient.device}, not {meta.device}"
    if tuple(gradient.shape) != shape:
        gradient = gradient.sum_to_size(shape)
    return gradient.to(meta.dtype)


def _or(value: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if value is None else value
