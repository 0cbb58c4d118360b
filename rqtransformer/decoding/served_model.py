"""What the fast forms of decoding, `NativePosition` and `DecodeProgram`, know of a model and of a request.

See `rqtransformer.fast.served`; the packed step of a stack says for itself what it knows (`fast.packed_step`).
"""

from __future__ import annotations

from torch import nn

from rqtransformer.config import RQTransformerConfig
from rqtransformer.decoding.sampling_request import SamplingRequest
from rqtransformer.decoding.truncation import is_known_draw
from rqtransformer.embedding import CodeClassifier, DepthLinear, DepthTokenEmbedding, SharedTokenEmbedding
from rqtransformer.fast.packed_step import STACK_SETTINGS
from rqtransformer.fast.served import has_only, is_plain, knows_settings
from rqtransformer.model import RQTransformer
from rqtransformer.stack import is_known_stack

MODEL_SETTINGS: dict[type, frozenset[str]] = STACK_SETTINGS | {
    RQTransformerConfig: frozenset(
        {"type", "ema", "ar_hierarchy", "use_padding_emb", "scaled_head_emb_vqvae"}  # fixed values, or of no effect
        | {"vocab_size", "block_size", "vocab_size_cond", "block_size_cond", "embed_dim", "input_embed_dim"}
        | {"input_emb_vqvae", "head_emb_vqvae", "cumsum_depth_ctx", "shared_tok_emb", "shared_cls_emb", "embd_pdrop"}
        | {"body", "head", "cond_drop_prob"}
    )
}
REQUEST_FIELDS: dict[type, frozenset[str]] = {
    SamplingRequest: frozenset(
        {"cond_BL", "prefix_BPD", "known_BTD", "codes_BTD", "settings", "scale_T", "index_B", "allowed"}
    )
}
CLASSIFIER_NAMES = frozenset({"vocab_sizes", "shared", "_largest", "layer_norm", "linear", "slots"})
DEPTH_TABLE_NAMES = frozenset({"vocab_sizes", "_starts", "weight", "offsets"})


def knows_model(model: RQTransformer) -> bool:
    """Whether the model and every part that decoding runs through are those that the fast forms do again."""
    projections = [linear for linear in (model.input_mlp, model.head_mlp) if linear is not None]
    return (
        is_plain(model, RQTransformer)
        and knows_settings(model.config, MODEL_SETTINGS)
        and is_known_stack(model.body_transformer)
        and is_known_stack(model.head_transformer)
        and _knows_classifier(model.classifier)
        and _knows_tokens(model.tok_emb)
        and all(is_plain(linear, nn.Linear) for linear in projections)
    )


def knows_request(request: SamplingRequest) -> bool:
    """Whether the fast forms know all that a request may ask for; what each of them can do is for itself to say."""
    return knows_settings(request, REQUEST_FIELDS) and all(is_known_draw(settings) for settings in request.settings)


def _knows_classifier(classifier: nn.Module) -> bool:
    return (
        is_plain(classifier, CodeClassifier)
        and has_only(classifier, CLASSIFIER_NAMES)
        and is_plain(classifier.layer_norm, nn.LayerNorm)
        and classifier.layer_norm.elementwise_affine
        and is_plain(classifier.linear, nn.Linear, DepthLinear)
    )


def _knows_tokens(table: nn.Module | None) -> bool:
    if isinstance(table, DepthTokenEmbedding):
        return is_plain(table, DepthTokenEmbedding) and has_only(table, DEPTH_TABLE_NAMES)
    return table is None or is_plain(table, SharedTokenEmbedding)
