"""A walk in fixed buffers, kept with the model: the kernels of a position are recorded once and replayed ever after.

Everything of a position (body step, D head steps, D draws, D embeddings) is one recording. Conditions, noise, guidance
scales, masks and code vectors are copied into the buffers that it reads; a batch smaller than the buffers is filled up.
Another recording is the start of a walk without given codes.

Not verified on a GPU. On a CPU the same steps run on the same buffers, without being recorded.

Legend: B batch, P given positions, T = H*W positions, D code depth, K codebook size, E code-vector size, L condition
length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from rqstack.triton_kernels import use_triton
from rqtransformer.decoding.decoder import Decoder
from rqtransformer.decoding.position_step import DrawInputs, PositionStep
from rqtransformer.decoding.sampling_request import SamplingRequest
from rqtransformer.fast.cuda_graph import Recorder, Recording, recorder_on
from rqtransformer.model import RQTransformer

# Before a step is recorded it runs as it is: kernels are loaded and workspaces filled, which recording forbids.
EAGER_STEPS = 2
# Attributes of modules that shape what they compute, besides their tensors and types.
SHAPING = ("eps", "approximate", "num_heads", "kv_heads", "head_dim", "slopes", "vocab_sizes", "shared")


def borrow_program(
    model: RQTransformer, books: Sequence[Tensor], request: SamplingRequest, inputs: DrawInputs, dtype: torch.dtype
) -> DecodeProgram:
    """A program for the request, the caller's until `model.decoding.give_back`: an idle one, or a new one.

    Args:
        model: in decoding mode, its weights in place.
        books: see `head_walk.code_vectors`.
        request: with as many samples as the buffers shall have.
        inputs: of the draws.
        dtype: of the caches.
    """
    key = (
        (request.batch_size, request.index_B.device, dtype, model.decoding.form, tuple(request.settings)),
        (request.scale_T is None, request.known_BTD is None, FixedBooks.layout(books)),
        _surroundings(request.index_B.device),
        _structure(model),
    )
    found = model.decoding.take(key, _addresses(model))
    if found is not None:
        return found
    try:
        return DecodeProgram(model, books, request, inputs, dtype, key)
    except torch.OutOfMemoryError:
        model.decoding.clear()  # the caches of idle programs
        return DecodeProgram(model, books, request, inputs, dtype, key)


def filled_up(request: SamplingRequest, rows: int) -> SamplingRequest:
    """The request with the last sample repeated until there are `rows`; a request that has as many stays as it is."""
    count = request.batch_size
    if count >= rows:
        return request
    order = torch.arange(rows, device=request.index_B.device).clamp(max=count - 1)
    with_null = order if request.scale_T is None else torch.cat([order, order + count])
    return dataclasses.replace(
        request,
        cond_BL=request.cond_BL[with_null],
        prefix_BPD=request.prefix_BPD[order],
        known_BTD=None if request.known_BTD is None else request.known_BTD[order],
        codes_BTD=None if request.codes_BTD is None else request.codes_BTD[order],
        index_B=request.index_B[order],
    )


class FixedBooks:
    """Code vectors at fixed places: a tokenizer may compute them anew whenever it is asked."""

    def __init__(self, books: Sequence[Tensor]):
        copies = {_place(book): book.clone() for book in books}
        self._books = [copies[_place(book)] for book in books]

    @staticmethod
    def layout(books: Sequence[Tensor]) -> tuple[Hashable, ...]:
        """Shapes, types, and which depths share one book."""
        places = [_place(book) for book in books]
        return tuple((tuple(book.shape), book.dtype, places.index(_place(book))) for book in books)

    def codebook(self, depth: int) -> Tensor:
        """See `ImageTokenizer`."""
        return self._books[depth]

    def copy_(self, books: Sequence[Tensor]) -> None:
        """Takes the numbers of books of the same layout."""
        for own, new in {id(own): (own, new) for own, new in zip(self._books, books)}.values():
            own.copy_(new)


class DecodeProgram:
    """The buffers of a walk and what is recorded of it.

    Args: see `borrow_program`.

    Attributes:
        key: what it was made for.
        reads: addresses of all that a recording reads of the model; with others it is of no use.
        recorder: whose `aside` surrounds every use of the program.
        codes_BTD: the code map.
    """

    def __init__(
        self,
        model: RQTransformer,
        books: Sequence[Tensor],
        request: SamplingRequest,
        inputs: DrawInputs,
        dtype: torch.dtype,
        key: Hashable,
    ):
        self.key: Hashable = key
        self.reads: tuple[int, ...] = _addresses(model)
        self.recorder: Recorder = recorder_on(request.index_B.device)
        self._recordings: dict[Callable[[], None], Recording] = {}
        self._eager_calls: dict[Callable[[], None], int] = {}
        with self.recorder.aside():
            self._books = FixedBooks(books)
            self._cond_BL, self._nothing_BPD = request.cond_BL.clone(), request.body_prefix_BPD[:, :0].clone()
            self._inputs = inputs.clone()
            shape = (request.batch_size, model.num_positions, model.depth)
            self.codes_BTD = torch.zeros(shape, dtype=torch.long, device=request.index_B.device)
            self._decoder = Decoder(model, self._books, self._cond_BL, self._nothing_BPD, dtype, on_device=True)
            self._step = PositionStep(self._decoder, request.settings, self._inputs, self.codes_BTD)
            self._input_sum = self._decoder.new_input_sum(len(self._cond_BL))
        self._position = 0

    def start(self, request: SamplingRequest, inputs: DrawInputs, books: Sequence[Tensor]) -> None:
        """Takes a request of its kind and draws the first position that is not given."""
        prefix_BPD = request.prefix_BPD
        self._inputs.copy_(inputs)
        self._cond_BL.copy_(request.cond_BL)
        self._books.copy_(books)
        self._position = prefix_BPD.shape[1]
        if self._position:
            self.codes_BTD[:, : self._position] = prefix_BPD
            self._draw_after(request.body_prefix_BPD)
        else:
            self._run(self._draw_first)
        self._position += 1

    def draw_next(self) -> None:
        """Draws one more position."""
        self._run(self._draw_another)
        self._position += 1

    def close(self) -> None:
        """Waits until its memory may be freed."""
        self.recorder.wait()

    def _run(self, step: Callable[[], None]) -> None:
        recording = self._recordings.get(step)
        if recording is None and self._eager_calls.get(step, 0) >= EAGER_STEPS:
            recording = self.recorder.record(step)
            if recording is not None:
                self._recordings[step] = recording
        if recording is not None:
            recording.replay()
            return
        self._eager_calls[step] = self._eager_calls.get(step, 0) + 1
        step()

    def _draw_first(self) -> None:
        self._draw_after(self._nothing_BPD)

    def _draw_after(self, prefix_BPD: Tensor) -> None:
        self._decoder.restart(self._cond_BL, prefix_BPD)
        self._step()
        self._input_sum.copy_(self._decoder.pending_input)

    def _draw_another(self) -> None:
        self._decoder.resume(self._position, self._input_sum)
        self._step()
        self._input_sum.copy_(self._decoder.pending_input)


def _place(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _addresses(model: RQTransformer) -> tuple[int, ...]:
    """Where everything stands that a recording reads of the model. In-place changes of it are seen by every replay."""
    return tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers(), *model.packed_tensors))


def _structure(model: RQTransformer) -> tuple[Hashable, ...]:
    """What the modules compute, besides their tensors."""
    shapes = tuple(
        (type(module), *(str(vars(module)[name]) for name in SHAPING if name in vars(module)))
        for module in model.modules()
    )
    return (repr(model.config), *shapes)


def _surroundings(device: torch.device) -> tuple[Hashable, ...]:
    """Settings of torch that decide which kernels are recorded."""
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return (
        autocast,
        use_triton(device),
        torch.backends.cuda.matmul.fp32_precision,
        torch.are_deterministic_algorithms_enabled(),
    )
