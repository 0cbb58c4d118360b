"""The `arch` section: published names and defaults, and one-line errors for everything that does not fit."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from rqtransformer import RQTransformer, RQTransformerConfig


def test_published_defaults(arch):
    minimal = {key: arch()[key] for key in ("block_size", "embed_dim", "vocab_size", "body", "head")}
    config = RQTransformerConfig.from_mapping(minimal)
    switches = (
        "shared_tok_emb",
        "shared_cls_emb",
        "input_emb_vqvae",
        "head_emb_vqvae",
        "cumsum_depth_ctx",
        "use_padding_emb",
        "scaled_head_emb_vqvae",
    )
    assert not any(getattr(config, name) for name in switches)
    assert (config.vocab_size_cond, config.block_size_cond) == (1, 1)
    assert (config.input_embed_dim, config.code_dim) == (None, 16)
    assert (config.embd_pdrop, config.cond_drop_prob) == (0.0, 0.0)
    block = config.body.block
    assert (block.mlp_bias, block.attn_bias, block.attn_pdrop, block.resid_pdrop, block.gelu) == (
        True,
        True,
        0.0,
        0.1,
        "v1",
    )


@pytest.mark.parametrize("name", ["rqtransformer-class", "rqtransformer-text"])
def test_published_files_are_accepted(name, golden):
    config = RQTransformerConfig.from_mapping(golden(name).config.arch)
    assert config.block_size == [8, 8, 4]
    assert config.vocab_sizes == [64] * 4


def test_vocabulary_comes_from_the_section_or_the_argument(arch):
    assert RQTransformerConfig.from_mapping(arch(), vocab_size=99).vocab_sizes == [11] * 3
    assert RQTransformerConfig.from_mapping(arch(vocab_size=None), vocab_size=99).vocab_sizes == [99] * 3
    sizes = OmegaConf.create({"v": [3, 4, 5]}).v
    assert RQTransformerConfig.from_mapping(arch(vocab_size=None), vocab_size=sizes).vocab_sizes == [3, 4, 5]


def test_zero_condition_sizes_mean_unconditional(arch):
    config = RQTransformerConfig.from_mapping(arch(vocab_size_cond=0, block_size_cond=0))
    assert (config.vocab_size_cond, config.block_size_cond) == (1, 1)


def test_merges_as_an_omegaconf_schema(arch):
    merged = OmegaConf.merge(OmegaConf.structured(RQTransformerConfig), OmegaConf.create(arch()))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, RQTransformerConfig)
    RQTransformer(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dims": 4}, "unknown key arch.embed_dims; did you mean 'embed_dim'"),
        ({"zzz": 4}, "unknown key arch.zzz; known keys: type, ema"),
        ({"body": {"n_layers": 1}}, "unknown key arch.body.n_layers; did you mean 'n_layer'"),
        ({"body": {"n_layer": 1, "block": {"heads": 2}}}, "unknown key arch.body.block.heads; did you mean 'n_head'"),
        ({"embed_dim": "wide"}, "arch.embed_dim: Value 'wide'"),
        ({"block_size": [8, 8]}, r"arch.block_size=\[8, 8\] must be three positive numbers"),
        ({"block_size": [8, 0, 4]}, "must be three positive numbers"),
        ({"embed_dim": 0}, "arch.embed_dim must be a whole number of at least 1, got 0"),
        ({"input_embed_dim": 0}, "arch.input_embed_dim must be a whole number of at least 1, got 0"),
        ({"vocab_size": None}, "arch.vocab_size is missing"),
        ({"vocab_size": [3, 4]}, r"arch.vocab_size=\[3, 4\] must be one number or one per depth \(3\)"),
        ({"vocab_size": [3, 4, 0]}, "every number of arch.vocab_size must be a whole number of at least 1, got 0"),
        ({"body": {"n_layer": 2, "block": {"n_head": 3}}}, "arch.body.block.n_head=3 must divide arch.embed_dim=16"),
        ({"head": {"n_layer": -1, "block": {"n_head": 2}}}, "arch.head.n_layer=-1 must be 0 or more"),
        ({"head": {"n_layer": 1, "block": {"n_head": 2, "gelu": "v3"}}}, "gelu='v3' must be one of v1, v2"),
        ({"head": {"n_layer": 1, "block": {"n_head": 2, "embed_dim": 8}}}, "embed_dim=8 must equal arch.embed_dim=16"),
        ({"head": {"n_layer": 1, "block": {"n_head": 2, "resid_pdrop": 1.0}}}, "resid_pdrop=1.0 must be at least 0"),
        ({"vocab_size_cond": 1, "block_size_cond": 4}, "arch.block_size_cond=4 needs arch.vocab_size_cond above 1"),
        ({"type": "gpt"}, "arch.type='gpt' is not supported, only 'rq-transformer' is"),
        ({"ar_hierarchy": True}, "arch.ar_hierarchy=True is not supported, only None is"),
        ({"ar_hierarchy": False}, "arch.ar_hierarchy=False is not supported, only None is"),
        ({"use_padding_emb": True}, "arch.use_padding_emb=True is not supported, only False is"),
        ({"scaled_head_emb_vqvae": True}, "arch.scaled_head_emb_vqvae=True is not supported, only False is"),
        ({"cond_drop_prob": 1.5}, "arch.cond_drop_prob=1.5"),
        ({"vocab_size_cond": 1, "cond_drop_prob": 0.1}, "cond_drop_prob=0.1 needs a condition"),
    ],
)
def test_wrong_values_are_named_in_one_line(changes, message, arch):
    with pytest.raises(ValueError, match=message) as error:
        RQTransformerConfig.from_mapping(arch(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["block_size", "embed_dim"])
def test_missing_values_are_named(key, arch):
    mapping = arch()
    del mapping[key]
    with pytest.raises(ValueError, match=key):
        RQTransformerConfig.from_mapping(mapping)


def test_missing_layer_counts_are_named(arch):
    with pytest.raises(ValueError, match="head"):
        RQTransformerConfig.from_mapping(arch(head={"block": {"n_head": 2}}))
