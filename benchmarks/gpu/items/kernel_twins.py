"""The Triton kernels of decoding, called by themselves, against their plain twins: draw, attention, norm, int8.

Each entry says whether the kernel served the arguments; on a GPU it must. Elsewhere the plain form stands for both.
Legend: B batch, V vocabulary, A heads of queries, K heads of keys, S slots of the cache, F features, R rows, C width,
I input and O output features.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.items.models import drawn
from benchmarks.gpu.items.timing import median_ms, relative, without_kernels
from benchmarks.gpu.report import Report
from rqstack.triton_kernels import use_triton
from rqtransformer.decoding.truncation import draw_truncated
from rqtransformer.draw_settings import DrawSettings

ROOM = "rqtransformer.fast.kernels"
SETTINGS = (
    DrawSettings(),
    DrawSettings(top_k=2048, top_p=0.95),
    DrawSettings(temperature=0.8, top_k=1),
    DrawSettings(top_p=0.9),
    DrawSettings(top_k=100_000, top_p=1e-4),
    DrawSettings(temperature=1.3, top_k=300),
)
ROWS, VOCABULARIES, TINY_VOCABULARIES = 200, (16384, 5000), (1000,)
NEAR = 1e-6  # of a boundary of the cumulated probability: there the two forms may round to either side
FORMATS = ((torch.float32, 1e-5), (torch.bfloat16, 1e-2))  # with the relative error allowed
# batch, heads of queries and of keys, slots, filled ones, features: the body of the 1.4B model, its head, shared heads
ATTENTION = ((200, 24, 24, 64, 40, 64), (200, 24, 24, 4, 0, 64), (7, 8, 2, 70, 69, 48))
ROW, WIDTH = 200, 1536
TINY_ROWS, TINY_WIDTH = 4, 96
INT8_ROWS = (1, 4)


def kernel_of(report: Report, module: str) -> Any:
    """The module of a kernel where kernels run, else None."""
    return importlib.import_module(f"{ROOM}.{module}") if use_triton(report.device) else None


def _time(report: Report, call: Callable[[], object]) -> float:
    return round(median_ms(call, report.device, 3 if report.tiny else 20), 4)


def draw(report: Report) -> None:
    """On logits of a bf16 model: ties, a row of one code, uniform numbers at both ends."""
    kernel = kernel_of(report, "draw_triton")
    for vocabulary in TINY_VOCABULARIES if report.tiny else VOCABULARIES:
        logits_BV = (2 * drawn((ROWS, vocabulary), 0)).bfloat16().to(report.device)
        logits_BV[3] = float("-inf")
        logits_BV[3, vocabulary // 2] = 1.0
        uniform_B = torch.rand(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(report.device)
        uniform_B[0], uniform_B[1] = 0.0, 1.0 - 2.0**-53
        for settings in SETTINGS:
            name = f"draw V={vocabulary} {settings}"
            with report.case(name):
                _compare_draw(report, name, kernel, (logits_BV, uniform_B, settings))


def _compare_draw(report: Report, name: str, kernel: Any, given: tuple[Tensor, Tensor, DrawSettings]) -> None:
    served = kernel is not None and kernel.serves(*given)
    form = kernel.draw if served else draw_truncated
    with without_kernels():
        plain_B, plain_ms = draw_truncated(*given), _time(report, lambda: draw_truncated(*given))
    codes_B, fused_ms = form(*given), _time(report, lambda: form(*given))
    different_B = codes_B != plain_B
    wrong = int((different_B & ~_at_a_boundary(*given)).sum())
    values = {"served": served, "wrong": wrong, "different": int(different_B.sum())}
    report.check(name, wrong == 0 and (served or not report.on_gpu), **values, plain_ms=plain_ms, ms=fused_ms)


def _at_a_boundary(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings) -> Tensor:
    """Whether the uniform number lies so near to where one code ends that fp32 sums may decide either way."""
    scores_BV = logits_BV.float() / settings.temperature
    order_BV = scores_BV.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    kept_BV = torch.ones_like(order_BV.values, dtype=torch.bool)
    if settings.top_k is not None:
        lowest_B1 = order_BV.values[:, min(settings.top_k, logits_BV.shape[1]) - 1, None]
        kept_BV &= order_BV.values >= lowest_B1  # ties at k stay
    if settings.top_p is not None:
        mass_BV = order_BV.values * kept_BV
        mass_BV = mass_BV / mass_BV.sum(-1, keepdim=True)
        kept_BV &= mass_BV.cumsum(-1) - mass_BV <= settings.top_p  # the code that crosses p stays
    probability_BV = torch.zeros_like(order_BV.values).scatter(-1, order_BV.indices, order_BV.values * kept_BV)
    cumulated_BV = (probability_BV / probability_BV.sum(-1, keepdim=True)).cumsum(-1)
    return (cumulated_BV - uniform_B.unsqueeze(1)).abs().amin(1) < NEAR


def attention(report: Report) -> None:
    """One position over its cache, with the write into it; the slots that are not filled hold what must not be seen."""
    for shape in ATTENTION:
        for dtype, allowed in FORMATS:
            name = f"attention {shape} {str(dtype).removeprefix('torch.')}"
            with report.case(name):
                _compare_attention(report, name, shape, (dtype, allowed))


def _compare_attention(
    report: Report, name: str, shape: tuple[int, int, int, int, int, int], form: tuple[torch.dtype, float]
) -> None:
    (batch, heads, kv_heads, slots, filled, features), (dtype, allowed) = shape, form
    batch = min(batch, TINY_ROWS) if report.tiny else batch
    kernel = kernel_of(report, "attention_triton")
    query, key, value = (
        drawn((batch, count, 1, features), seed).to(report.device, dtype)
        for seed, count in enumerate((heads, kv_heads, kv_heads))
    )
    stored = drawn((2, batch, kv_heads, slots, features), 3).to(report.device, dtype)
    stored[..., filled:, :] = 1e4
    index, kept, cache = torch.tensor([filled], device=report.device), stored.clone(), stored.clone()
    expected = plain_attend(query, key, value, kept, index)
    served = kernel is not None and kernel.serves(query, key, value, cache, index)
    attend = kernel.attend if served else plain_attend
    error = relative(attend(query, key, value, cache, index), expected)
    written = torch.equal(cache, kept)
    plain_ms, fused_ms = (
        _time(report, partial(call, query, key, value, cache, index)) for call in (plain_attend, attend)
    )
    right = error < allowed and written and (served or not report.on_gpu)
    report.check(name, right, served=served, relative=error, cache=written, plain_ms=plain_ms, ms=fused_ms)


def plain_attend(
    query_BA1F: Tensor, key_BK1F: Tensor, value_BK1F: Tensor, stored_2BKSF: Tensor, index: Tensor
) -> Tensor:
    """Attention of the new position over the filled slots and itself; writes it into the cache."""
    stored_2BKSF[0].index_copy_(2, index, key_BK1F)
    stored_2BKSF[1].index_copy_(2, index, value_BK1F)
    group = query_BA1F.shape[1] // key_BK1F.shape[1]
    key_BASF, value_BASF = (part.repeat_interleave(group, dim=1) for part in stored_2BKSF)
    mask = torch.arange(stored_2BKSF.shape[3], device=index.device) <= index
    return F.scaled_dot_product_attention(query_BA1F, key_BASF, value_BASF, attn_mask=mask.view(1, 1, 1, -1))


def norms(report: Report) -> None:
    """Sum with bias and residual, LayerNorm or RMSNorm, cast: the 1.4B model's rows."""
    kernel = kernel_of(report, "norm_triton")
    rows, width = (TINY_ROWS, TINY_WIDTH) if report.tiny else (ROW, WIDTH)
    x_RC, residual_RC = (drawn((rows, width), seed).to(report.device) for seed in (0, 1))
    bias_C, weight_C, shift_C = (drawn((width,), seed).to(report.device) for seed in (2, 3, 4))
    for name, shift in (("layer norm", shift_C), ("rms norm", None)):
        for dtype, allowed in FORMATS:
            title = f"{name} {str(dtype).removeprefix('torch.')}"
            with report.case(title):
                given = (x_RC.to(dtype), residual_RC, bias_C, weight_C, shift, dtype)
                plain = partial(_plain_norm, *given)
                served = kernel is not None and kernel.serves(*given)
                fused = plain
                if served:
                    fused = partial(_fused_norm, kernel, *given)
                error, times = relative(fused(), plain()), [_time(report, call) for call in (plain, fused)]
                right = error < allowed and (served or not report.on_gpu)
                report.check(title, right, served=served, relative=error, plain_ms=times[0], ms=times[1])


def _fused_norm(kernel: Any, *given: Any) -> Tensor:
    normed_RC: Tensor = kernel.add_and_norm(*given, epsilon=1e-5, centred=given[4] is not None).normed
    return normed_RC


def _plain_norm(
    x_RC: Tensor,
    residual_RC: Tensor,
    bias_C: Tensor,
    weight_C: Tensor,
    shift_C: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    sum_RC = x_RC.float() + bias_C + residual_RC
    if shift_C is not None:
        return F.layer_norm(sum_RC, weight_C.shape, weight_C, shift_C, 1e-5).to(dtype)
    return F.rms_norm(sum_RC, weight_C.shape, weight_C, 1e-5).to(dtype)


def int8(report: Report) -> None:
    """Products of few rows with int8 weights, as batch 1 has them, beside the weights expanded and a dense product."""
    kernel = kernel_of(report, "int8_triton")
    width = TINY_WIDTH if report.tiny else WIDTH
    weight_OI = torch.randint(-127, 128, (4 * width, width), generator=torch.Generator().manual_seed(0))
    weight_OI, dtype = weight_OI.to(report.device, torch.int8), torch.bfloat16
    scale_O = drawn((len(weight_OI),), 1).abs().to(report.device, dtype) / 100
    dense_OI = weight_OI.to(dtype) * scale_O.unsqueeze(1)
    for rows in INT8_ROWS:
        name = f"int8 product, {rows} rows"
        with report.case(name):
            x_RI = drawn((rows, width), 2).to(report.device, dtype)
            exact_RO = (x_RI.double() @ weight_OI.double().T) * scale_O.double()
            served = kernel is not None and kernel.serves(x_RI, weight_OI, scale_O)
            plain = partial(_expanded, x_RI, weight_OI, scale_O)
            form = partial(kernel.product, x_RI, weight_OI, scale_O) if served else plain
            error, times = relative(form(), exact_RO), [_time(report, call) for call in (plain, form)]
            values = {
                "plain_ms": times[0],
                "ms": times[1],
                "dense_ms": _time(report, partial(F.linear, x_RI, dense_OI)),
            }
            report.check(name, error < 1e-2 and (served or not report.on_gpu), served=served, relative=error, **values)


def _expanded(x_RI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    return F.linear(x_RI, weight_OI.to(x_RI.dtype) * scale_O.unsqueeze(1))
