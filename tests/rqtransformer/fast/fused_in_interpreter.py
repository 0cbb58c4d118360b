"""Run by test_fused_step.py with TRITON_INTERPRET=1: fused steps against the plain forward, one JSON line."""

import json
import sys
from unittest import mock

import torch

from rqtransformer import RQTransformer, RQTransformerConfig, sample
from rqtransformer.decoding import truncation
from rqtransformer.fast import fused_step, packed_step, packing
from rqtransformer.native import calls
from tests.rqtransformer.conftest import TableTokenizer, small_arch

CASES: dict[str, tuple[dict, dict, dict]] = {
    "published": ({}, {"n_head": 2}, {}),
    "grouped": ({}, {"n_head": 4, "n_kv_head": 2, "norm": "rms", "alibi": True, "attn_bias": False}, {}),
    "text": ({"block_size_cond": 2}, {"n_head": 2, "mlp_bias": False, "gelu": "v2"}, {}),
    "bf16": ({}, {"n_head": 2}, {"amp_dtype": torch.bfloat16}),
}


def compare(changes: dict, block: dict, form: dict) -> dict:
    """Largest distance of the body's outputs, equal codes, steps taken."""
    stacks = {"body": {"n_layer": 2, "block": block}, "head": {"n_layer": 1, "block": dict(block)}}
    config = RQTransformerConfig.from_mapping(small_arch(block_size=[2, 1, 2], **stacks, **changes))
    torch.manual_seed(1)
    model, tokenizer = RQTransformer(config).eval(), TableTokenizer(config.vocab_sizes, config.code_dim)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    cond = torch.randint(0, 5, (3, config.block_size_cond))
    dtype = form.get("amp_dtype", torch.float32)

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        x_BLC, steps = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)), []
        with torch.no_grad(), model.decoding_mode(*form.values()):
            stack = model.body_transformer
            for on_device in (False, True):
                cache = stack.new_cache(2, 6, dtype, torch.device("cpu"), on_device)
                steps.append(stack(x_BLC[:, :2], cache))
                steps += [stack(x_BLC[:, position : position + 1], cache) for position in range(2, 5)]
        codes = [sample(model, tokenizer, cond, top_k=3, graphs=graphs, **form) for graphs in (False, True)]
        return torch.cat(steps, dim=1), torch.stack(codes)

    plain, plain_codes = outputs()
    taken = []
    call = fused_step.FusedStep.__call__
    with (
        mock.patch.object(packed_step, "use_kernel", lambda trial, device: True),
        mock.patch.object(truncation, "use_kernel", lambda trial, device: True),
        mock.patch.object(fused_step.FusedStep, "__call__", lambda *given: taken.append(1) or call(*given)),
    ):
        fused, fused_codes = outputs()
    return {
        "distance": (plain - fused).abs().max().item(),
        "equal": (plain_codes == fused_codes).float().mean().item(),
        "steps": len(taken),
    }


def main() -> None:
    found = {}
    packing._can_block = lambda weight: False
    with mock.patch.object(calls, "library", lambda: None):
        for name in sys.argv[1:]:
            found[name] = compare(*CASES[name])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
