"""The `arch` section of a stage-2 YAML file, typed, with the published field names and defaults."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, List, Optional, cast, get_type_hints

from omegaconf import MISSING, OmegaConf

from rqstack.arguments import INT64_MAX, check_count, check_counts, check_mapping, shown

GELU_NAMES = ("v1", "v2")
NORM_NAMES = ("layer", "rms")
# Published files write these, always with these values; nothing here reads them, so no other value is accepted.
FIXED_VALUES = {
    "type": "rq-transformer",
    "ar_hierarchy": None,
    "use_padding_emb": False,
    "scaled_head_emb_vqvae": False,
}


@dataclass
class BlockConfig:
    """One transformer block. What follows `gelu` is ours; its defaults are the published block.

    Attributes:
        embed_dim: written by published files; must repeat that of the model.
        n_head: attention heads; they divide `embed_dim` unless `head_dim` is given.
        mlp_bias: biases in the two layers of the MLP.
        attn_bias: biases in the projections of attention.
        attn_pdrop: dropout of attention weights.
        resid_pdrop: dropout of what a block adds.
        gelu: v1 (exact, erf) or v2 (x * sigmoid(1.702 x)).
        norm: layer or rms.
        head_dim: features per attention head. null: embed_dim / n_head.
        n_kv_head: heads of keys and values, each shared by n_head / n_kv_head queries; 1 is multi-query attention.
            null: n_head.
        mlp_ratio: hidden width of the MLP over embed_dim.
        alibi: scores fall linearly with the distance.
    """

    embed_dim: Optional[int] = None
    n_head: int = MISSING
    mlp_bias: bool = True
    attn_bias: bool = True
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.1
    gelu: str = "v1"
    norm: str = "layer"
    head_dim: Optional[int] = None
    n_kv_head: Optional[int] = None
    mlp_ratio: int = 4
    alibi: bool = False


@dataclass
class StackConfig:
    """A stack of equal blocks.

    Attributes:
        n_layer: blocks; 0 makes the stack the identity.
        block: what all of them are like.
    """

    n_layer: int = MISSING
    block: BlockConfig = field(default_factory=BlockConfig)


@dataclass
class RQTransformerConfig:
    """Sizes and switches of an RQ-Transformer.

    Attributes:
        type: `rq-transformer`, nothing else.
        ema: decay of the average of the weights; belongs to the training loop, of no effect on the model. null: none is
            kept.
        ar_hierarchy, use_padding_emb, scaled_head_emb_vqvae: written by published files, always with the default; any
            other value is refused.
        vocab_size: codebook size, or one per depth. Training files leave it to `dataset.vocab_size` or the checkpoint.
        block_size: code grid [H, W, D]. Training files may leave it to the stage-1 checkpoint.
        vocab_size_cond, block_size_cond: number of condition ids, and ids per image. 1 and 1: unconditional; C and 1: C
            classes; V and L: a text of L tokens.
        embed_dim: width of body and head.
        input_embed_dim: size of the stage-1 code vectors. null: `embed_dim`; in training files the one of the stage-1
            checkpoint where its vectors are used.
        input_emb_vqvae, head_emb_vqvae: embed codes with the stage-1 code vectors in the body, in the head.
        cumsum_depth_ctx: the head sees the running sum of the code vectors drawn so far (Eq. 9 of the paper).
        shared_tok_emb: one token table for all depths (used only where the code vectors are not).
        shared_cls_emb: one classifier for all depths.
        embd_pdrop: dropout of the embeddings.
        body: the stack over the positions.
        head: the stack over the codes of one position.
        cond_drop_prob: ours; in training, the share of images whose condition is replaced by one extra null condition,
            which makes classifier-free guidance possible. 0 adds no parameters.
    """

    type: str = "rq-transformer"
    ema: Any = None
    ar_hierarchy: Optional[bool] = None
    vocab_size: Any = None
    block_size: List[int] = field(default_factory=list)
    vocab_size_cond: int = 1
    block_size_cond: int = 1
    embed_dim: int = MISSING
    input_embed_dim: Optional[int] = None
    use_padding_emb: bool = False
    input_emb_vqvae: bool = False
    head_emb_vqvae: bool = False
    scaled_head_emb_vqvae: bool = False
    cumsum_depth_ctx: bool = False
    shared_tok_emb: bool = False
    shared_cls_emb: bool = False
    embd_pdrop: float = 0.0
    body: StackConfig = field(default_factory=StackConfig)
    head: StackConfig = field(default_factory=StackConfig)
    cond_drop_prob: float = 0.0

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], vocab_size: Any = None) -> "RQTransformerConfig":
        """An `arch` section (dict or OmegaConf) -> validated config.

        Args:
            mapping: the published keys; missing ones take their published default.
            vocab_size: used when the section has none (`dataset.vocab_size` of a training file).

        Raises:
            ValueError: unknown key (with the nearest known one), missing key, wrong type, sizes that do not fit.
        """
        given = OmegaConf.to_container(mapping, resolve=True) if OmegaConf.is_config(mapping) else mapping
        check_mapping("the config", given)
        values = dict(cast("Mapping[str, Any]", given))
        if values.get("vocab_size") is None:
            values["vocab_size"] = vocab_size
        _refuse_unknown_keys(cls, values, prefix="arch")
        try:
            config = cast(
                "RQTransformerConfig", OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
            )
        except Exception as error:  # OmegaConf raises many types; all of them are a wrong value in the mapping
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            key = getattr(error, "full_key", None)
            raise ValueError(f"arch.{key}: {first_line}" if key else f"arch: {first_line}") from error
        config.validate()
        return config

    @property
    def vocab_sizes(self) -> list[int]:
        """One vocabulary size per depth."""
        if isinstance(self.vocab_size, int):
            return [self.vocab_size] * self.block_size[2]
        return [int(size) for size in self.vocab_size]

    @property
    def code_dim(self) -> int:
        """Size of the stage-1 code vectors."""
        return self.embed_dim if self.input_embed_dim is None else self.input_embed_dim

    @property
    def has_null_condition(self) -> bool:
        """Whether the model has the extra condition that guidance needs."""
        return self.cond_drop_prob > 0

    def validate(self) -> None:
        """Raises ValueError, naming the value and what would be valid, if the sizes do not fit together."""
        for name, value in FIXED_VALUES.items():
            if getattr(self, name) != value:
                raise ValueError(f"arch.{name}={getattr(self, name)!r} is not supported, only {value!r} is")
        _check_grid(self)
        _check_vocabulary(self)
        for name, stack in (("body", self.body), ("head", self.head)):
            _check_stack(name, stack, self.embed_dim)
        _check_condition(self)
        _check_probability("arch.embd_pdrop", self.embd_pdrop)
        check_count("arch.input_embed_dim", self.code_dim)


def _refuse_unknown_keys(schema: type, values: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(schema)
    names = [item.name for item in dataclasses.fields(schema)]
    for key, value in values.items():
        if key not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(names):.200}..."
            raise ValueError(f"unknown key {prefix}.{key}; {hint}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            _refuse_unknown_keys(hints[key], value, f"{prefix}.{key}")


def _check_grid(config: RQTransformerConfig) -> None:
    block_size = config.block_size
    if _is_missing(block_size) or len(block_size) != 3 or min(block_size) < 1:
        raise ValueError(f"arch.block_size={block_size} must be three positive numbers: height, width, depth")
    check_count("arch.embed_dim", config.embed_dim)


def _check_vocabulary(config: RQTransformerConfig) -> None:
    vocab_size, depth = config.vocab_size, config.block_size[2]
    if vocab_size is None or _is_missing(vocab_size):
        raise ValueError("arch.vocab_size is missing, and no dataset.vocab_size stands in for it")
    if not isinstance(vocab_size, Sequence) or isinstance(vocab_size, str):
        check_count("arch.vocab_size", vocab_size)
    elif len(check_counts("arch.vocab_size", vocab_size)) != depth:
        raise ValueError(f"arch.vocab_size={shown(vocab_size)} must be one number or one per depth ({depth})")


def _check_stack(name: str, stack: StackConfig, embed_dim: int) -> None:
    block = stack.block
    if _is_missing(stack.n_layer) or stack.n_layer < 0:
        raise ValueError(f"arch.{name}.n_layer={stack.n_layer} must be 0 or more")
    if _is_missing(block.n_head) or block.n_head < 1 or (block.head_dim is None and embed_dim % block.n_head):
        raise ValueError(f"arch.{name}.block.n_head={block.n_head} must divide arch.embed_dim={embed_dim}")
    if block.n_kv_head is not None and (block.n_kv_head < 1 or block.n_head % block.n_kv_head):
        raise ValueError(f"arch.{name}.block.n_kv_head={block.n_kv_head} must divide n_head={block.n_head}")
    for key, value in (("mlp_ratio", block.mlp_ratio), ("head_dim", block.head_dim)):
        if value is not None:
            check_count(f"arch.{name}.block.{key}", value)
    if block.norm not in NORM_NAMES:
        raise ValueError(f"arch.{name}.block.norm={block.norm!r} must be one of {', '.join(NORM_NAMES)}")
    if block.embed_dim is not None and not _is_missing(block.embed_dim) and block.embed_dim != embed_dim:
        raise ValueError(f"arch.{name}.block.embed_dim={block.embed_dim} must equal arch.embed_dim={embed_dim}")
    if block.gelu not in GELU_NAMES:
        raise ValueError(f"arch.{name}.block.gelu={block.gelu!r} must be one of {', '.join(GELU_NAMES)}")
    _check_probability(f"arch.{name}.block.attn_pdrop", block.attn_pdrop)
    _check_probability(f"arch.{name}.block.resid_pdrop", block.resid_pdrop)


def _check_condition(config: RQTransformerConfig) -> None:
    # Published files write 0 for "no condition"; the model then has one start-of-sequence id.
    for name in ("vocab_size_cond", "block_size_cond"):
        check_count(f"arch.{name}", getattr(config, name), -INT64_MAX)
    config.vocab_size_cond = max(config.vocab_size_cond, 1)
    config.block_size_cond = max(config.block_size_cond, 1)
    if config.block_size_cond > 1 and config.vocab_size_cond == 1:
        raise ValueError(f"arch.block_size_cond={config.block_size_cond} needs arch.vocab_size_cond above 1")
    _check_probability("arch.cond_drop_prob", config.cond_drop_prob)
    if config.has_null_condition and config.vocab_size_cond == 1:
        raise ValueError(f"arch.cond_drop_prob={config.cond_drop_prob} needs a condition: arch.vocab_size_cond above 1")


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}={value} must be at least 0 and below 1")


def _is_missing(value: Any) -> bool:
    return isinstance(value, str) and value == MISSING
