"""The head for whoever has a body of their own: the context of one frame in, its D codes out.

Legend: B batch, D code depth, E code-vector size, C width of the head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rqstack.arguments import shown
from rqstack.counter_noise import uniform_noise
from rqtransformer.decoding.allowed_codes import Allowed, CodeFilter, check_allowed
from rqtransformer.decoding.head_walk import CodeVectorSource, HeadWalk
from rqtransformer.decoding.sampling_request import check_models, settings_per_depth
from rqtransformer.decoding.truncation import draw_truncated, is_known_draw
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.finite_draws import check_drawn, to_embed
from rqtransformer.given_values import whole_number
from rqtransformer.model import RQTransformer


class FrameCodes(NamedTuple):
    """One frame: its codes (B, D), and the sum (B, E) of the vectors with which a body reads them (Eq. 8)."""

    codes: Tensor
    vector_sum: Tensor


class FrameSampler:
    """Draws one frame after another for B streams; made by `frame_sampler`.

    The draw of a code depends on (probabilities, seed, index of the stream, number of the frame, depth) only, as in
    `sample`, whose positions are the frames.
    """

    def __init__(
        self,
        walk: HeadWalk,
        settings: list[DrawSettings],
        seed: int,
        index_B: Tensor,
        allowed: Allowed | None,
        checked: bool,
    ):
        self._walk, self._settings, self._seed, self._index_B = walk, settings, seed, index_B
        self._allowed, self._checked = allowed, checked
        self._compiled = None
        if allowed is None and all(map(is_known_draw, self._settings)):
            self._compiled = walk.compiled(self._settings)
        self.frame = 0

    @torch.no_grad()
    def __call__(self, context_BC: Tensor) -> FrameCodes:
        """Draws the codes of the next frame.

        Args:
            context_BC: the body's output for it, in the type of the model's parameters (or the `amp_dtype` given).

        Raises:
            ValueError: for a context of another shape or type; `NonFiniteError`, one of these, where the logits are not
                finite; where `allowed` leaves nothing.
        """
        model = self._walk.model
        expected = (len(self._index_B), model.config.embed_dim)
        if not isinstance(context_BC, Tensor) or tuple(context_BC.shape) != expected:
            given = tuple(context_BC.shape) if isinstance(context_BC, Tensor) else shown(context_BC)
            raise ValueError(f"the context of a frame must be of shape {expected}, not {given}")
        uniform_DB = uniform_noise(self._seed, self._index_B, [(self.frame, depth) for depth in range(model.depth)])
        if self._compiled is not None:
            codes_BD = self._walk.draw(self._compiled, context_BC, uniform_DB)
        else:
            codes_BD = self._draw_one_by_one(context_BC, uniform_DB)
        self.frame += 1
        assert self._walk.input_sum is not None, "all codes of the frame are pushed"
        if self._checked:
            check_drawn(codes_BD, model)
        return FrameCodes(codes_BD, self._walk.input_sum)

    def _draw_one_by_one(self, context_BC: Tensor, uniform_DB: Tensor) -> Tensor:
        walk, sizes = self._walk, self._walk.model.classifier.vocab_sizes
        rules_out = CodeFilter.of(self._allowed, len(context_BC), context_BC.device)
        codes_BD = torch.empty(len(context_BC), 0, dtype=torch.long, device=context_BC.device)
        walk.begin(context_BC)
        for uniform_B, settings, size in zip(uniform_DB, self._settings, sizes):
            logits_BV = walk.logits()
            if rules_out is not None:
                logits_BV = rules_out(logits_BV, None, codes_BD, size)
            code_B = draw_truncated(logits_BV, uniform_B, settings)
            walk.push(to_embed(code_B))
            codes_BD = torch.cat([codes_BD, code_B.unsqueeze(1)], dim=1)
        if rules_out is not None and self._checked:
            rules_out.check()
        return codes_BD


@contextlib.contextmanager
def frame_sampler(
    model: RQTransformer,
    tokenizer: CodeVectorSource | None,
    *,
    batch_size: int = 1,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] | None = None,
    top_p: float | Sequence[float] | None = None,
    seed: int = 0,
    start_index: int = 0,
    allowed: Allowed | None = None,
    amp_dtype: torch.dtype | None = None,
    weights: str = "dense",
    checked: bool = True,
    **more_rules: Any,
) -> Iterator[FrameSampler]:
    """The head of a model as a step: `with frame_sampler(model, tokenizer) as draw: codes, vectors = draw(context)`.

    For streams of any length whose body is not the model's own: audio frames, items of a session. The model is in
    decoding mode inside of the `with`.

    Args:
        model: whose head, classifier and code embeddings draw; its body is not run.
        tokenizer: gives the code vectors; None for a model with tables of its own.
        batch_size: B, the number of streams.
        allowed: as in `sample_stream`, but shown the codes of this frame only.
        checked: look at every frame whether its codes could be drawn, which waits for the device; off: what could not
            is -1 (`NOT_DRAWN`).
        temperature, top_k, top_p, seed, start_index, amp_dtype, weights, more_rules: see `sample_stream`.

    Raises:
        ValueError: for values out of range.
    """
    check_models(model, tokenizer)
    batch_size = whole_number("batch_size", batch_size, 1)
    seed, start_index = whole_number("seed", seed), whole_number("start_index", start_index)
    settings = settings_per_depth(model.depth, temperature=temperature, top_k=top_k, top_p=top_p, **more_rules)
    allowed = check_allowed(allowed)
    device = model.pos_emb_d.device
    index_B = torch.arange(start_index, start_index + batch_size, device=device)
    with model.decoding_mode(amp_dtype, weights):
        walk = HeadWalk(model, tokenizer, batch_size, amp_dtype or model.pos_emb_d.dtype)
        yield FrameSampler(walk, settings, seed, index_B, allowed, checked)
