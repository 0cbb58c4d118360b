"""The RQ-Transformer: a body over the H x W positions, a head over the D codes of one position (section 3.2 of the
paper).

Legend: B batch, H W grid, T = H*W positions, D code depth, E code-vector size, C width, V vocabulary, L condition
length,
S = L + T - 1 positions of the body.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqstack.arguments import check_kind, shown
from rqstack.hub import PretrainedModel
from rqstack.strict_loading import check_fit
from rqtransformer.attention import Block
from rqtransformer.config import RQTransformerConfig
from rqtransformer.embedding import CodeClassifier, DepthTokenEmbedding, ImageTokenizer, SharedTokenEmbedding
from rqtransformer.fast.decoding_state import DecodingState
from rqtransformer.fast.packing import PackedLinear, PackedSlot
from rqtransformer.fast.served import is_plain
from rqtransformer.fast.weight_format import WeightFormat
from rqtransformer.finite_draws import naming_weights
from rqtransformer.recomputation import Recomputation
from rqtransformer.stack import TransformerStack


class RQTransformerOutput(NamedTuple):
    """What `RQTransformer.forward` gives.

    Attributes:
        logits: (B, H, W, D, V).
        cond_logits: (B, L-1, vocab_size_cond), predictions of condition ids 1..L-1; None for L = 1.
        cond: (B, L), the condition ids that were used, null conditions of dropped images included.
    """

    logits: Tensor
    cond_logits: Tensor | None = None
    cond: Tensor | None = None


class RQTransformer(PretrainedModel):
    """Autoregressive model of code stacks, optionally conditioned on a class or a text.

    Parameter names and initialisation are the published ones. `from_pretrained`, `save_pretrained` and `push_to_hub`
    are those of `rqstack.hub`.

    Args:
        config: sizes and switches; validated here.

    Raises:
        ValueError: for a configuration whose values do not fit together.
    """

    arch_type = "rq-transformer"

    def __init__(self, config: RQTransformerConfig):
        super().__init__()
        check_kind("config", config, RQTransformerConfig).validate()
        self.config = config
        height, width, depth = config.block_size
        self.num_positions, self.depth = height * width, depth
        self.sampling_defaults: dict[str, object] = {}
        self.pos_emb_cond = _position_table(config.block_size_cond, config.embed_dim)
        self.pos_emb_hw = _position_table(self.num_positions, config.embed_dim)
        self.pos_emb_d = _position_table(depth, config.embed_dim)
        self.reset_parameters()
        self.cond_emb = nn.Embedding(config.vocab_size_cond + config.has_null_condition, config.embed_dim)
        self.tok_emb = _token_embedding(config)
        self.input_mlp = nn.Linear(config.code_dim, config.embed_dim) if config.input_emb_vqvae else None
        self.head_mlp = nn.Linear(config.code_dim, config.embed_dim) if config.head_emb_vqvae else None
        self._packed_input, self._packed_head = PackedSlot(), PackedSlot()
        self.decoding = DecodingState()
        self.embed_drop = nn.Dropout(config.embd_pdrop)
        self.body_transformer = TransformerStack(config.embed_dim, config.body)
        self.head_transformer = TransformerStack(config.embed_dim, config.head)
        self.classifier = CodeClassifier(config.embed_dim, config.vocab_sizes, config.shared_cls_emb)
        self.cond_classifier: nn.Sequential | None = None
        if config.block_size_cond > 1:
            self.cond_classifier = nn.Sequential()
            self.cond_classifier.add_module("layer_norm", nn.LayerNorm(config.embed_dim))
            self.cond_classifier.add_module("linear", nn.Linear(config.embed_dim, config.vocab_size_cond))

    def reset_parameters(self) -> None:
        """Draws the position tables, the only parameters outside of submodules, in the published order."""
        for table_1LC in (self.pos_emb_cond, self.pos_emb_hw, self.pos_emb_d):
            nn.init.normal_(table_1LC, std=0.02)

    @property
    def blocks(self) -> list[Block]:
        """The transformer blocks of body and head: the units of sharding, recomputing and compiling."""
        return [*self.body_transformer.blocks, *self.head_transformer.blocks]

    def compile_blocks(self, **options: Any) -> None:
        """Compiles every block's forward pass of training, in place; blocks of one stack share the code.

        Its shapes never change, so body and head get a code each that is made for just theirs. Evaluation, with batches
        of other sizes, and decoding, with caches of growing length, stay as they are. `options` are those of
        `torch.compile`.
        """
        for block in self.blocks:
            block.compile_forward(**options)

    @property
    def gradient_checkpointing(self) -> Recomputation:
        """Whether blocks are recomputed in the backward pass: less memory, and one more forward or, with `selective`,
        one more of what is no product of matrices."""
        return self.body_transformer.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: Recomputation) -> None:
        self.body_transformer.gradient_checkpointing = enabled
        self.head_transformer.gradient_checkpointing = enabled

    def forward(
        self, codes_BHWD: Tensor, tokenizer: ImageTokenizer | None, cond: Tensor | None = None
    ) -> RQTransformerOutput:
        """Logits of every code given all codes before it (raster order over positions, then depth).

        In training mode the condition is dropped at `config.cond_drop_prob` (torch's global random state).

        Args:
            codes_BHWD: int64 codes.
            tokenizer: gives the code vectors; may be None if the model has its own token table for both uses.
            cond: None (the null condition if there is one, else id 0), class ids (B,), or token ids (B, L).

        Raises:
            ValueError: for codes of another form, no tokenizer where one is needed, or a condition that does not fit.
        """
        self._check_codes(codes_BHWD)
        codes_BTD = codes_BHWD.flatten(1, 2)
        vectors_BTDE = None
        if self.input_mlp is not None or self.head_mlp is not None:
            if not callable(getattr(tokenizer, "embed_code_with_depth", None)):
                raise ValueError(
                    f"the model embeds codes with the code vectors of a tokenizer, got {type(tokenizer).__name__}"
                )
            assert tokenizer is not None
            vectors_BTDE = tokenizer.embed_code_with_depth(codes_BHWD).flatten(1, 2)
        cond_BL = self._drop_condition(self.condition_ids(cond, len(codes_BHWD), codes_BHWD.device))
        past_BTDE = None if vectors_BTDE is None else vectors_BTDE[:, :-1]
        body_out_BSC = self.body_transformer(self.body_input(cond_BL, codes_BTD[:, :-1], past_BTDE))
        last = cond_BL.shape[1] - 1
        head_in_BTDC = self.head_input(body_out_BSC[:, last:], codes_BTD, vectors_BTDE)
        head_out_NDC = self.head_transformer(head_in_BTDC.flatten(0, 1))
        # laid out before the classifier: sharding warns of outputs that are views
        logits = self.classifier(head_out_NDC.unflatten(0, codes_BHWD.shape[:3]))
        cond_logits = None if self.cond_classifier is None else self.cond_classifier(body_out_BSC[:, :last])
        return RQTransformerOutput(logits, cond_logits, cond_BL)

    @classmethod
    def _build(cls, sections: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> RQTransformer:
        dataset = sections.get("dataset", {})
        config = RQTransformerConfig.from_mapping(sections["arch"], vocab_size=dataset.get("vocab_size"))
        with torch.device("meta"):
            model = cls(config)
        wanted = model.state_dict()
        check_fit(wanted, tensors, "the checkpoint")
        # Copies: a memory-mapped or aliased tensor must not be shared by two parameters.
        own = {name: tensors[name].to(wanted[name].dtype, copy=True) for name in wanted}
        model.load_state_dict(own, strict=True, assign=True)
        model.requires_grad_(True)
        model.sampling_defaults = dict(sections.get("sampling", {}))
        return model

    def _sections(self) -> dict[str, Any]:
        sampling = {"sampling": dict(self.sampling_defaults)} if self.sampling_defaults else {}
        return {"arch": dataclasses.asdict(self.config), **sampling}

    def _card(self) -> tuple[str, list[str], dict[str, Any]]:
        config = self.config
        kind = "text" if config.block_size_cond > 1 else "class" if config.vocab_size_cond > 1 else "nothing"
        facts = {
            "condition": f"text of {config.block_size_cond} tokens" if kind == "text" else kind,
            "condition ids": config.vocab_size_cond,
            "codes of an image": " x ".join(map(str, config.block_size)),
            "codebook sizes": ", ".join(map(str, config.vocab_sizes)),
            "width": config.embed_dim,
            "layers": f"{config.body.n_layer} body, {config.head.n_layer} head",
            "parameters": f"{count_parameters(self):,}",
        }
        tag = {"text": "text-to-image", "class": "class-conditional-image-generation"}
        return (
            f"A transformer over stacks of image codes, conditioned on {kind}; images need the RQ-VAE it was "
            "trained with.",
            [tag.get(kind, "unconditional-image-generation")],
            facts,
        )

    def condition_ids(self, cond: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        """Any accepted form of condition -> ids (B, L).

        Raises:
            ValueError: when it is no tensor of whole numbers, or its shape fits neither (B,) nor (B, L).
        """
        length = self.config.block_size_cond
        if cond is None:
            null = self.null_condition if self.config.has_null_condition else 0
            return torch.full((batch_size, length), null, dtype=torch.long, device=device)
        wanted = f"({batch_size},)" if length == 1 else f"({batch_size}, {length})"
        if not isinstance(cond, Tensor) or cond.is_floating_point():
            raise ValueError(f"the condition must be a tensor {wanted} of whole numbers (int64), got {shown(cond)}")
        if cond.numel() != batch_size * length or not cond.ndim or cond.shape[0] != batch_size:
            raise ValueError(f"condition of shape {tuple(cond.shape)} does not fit; this model wants {wanted}")
        return cond.reshape(batch_size, length)

    @property
    def null_condition(self) -> int:
        """The id, one past the real ones, that stands for "no condition"."""
        return self.config.vocab_size_cond

    def body_input(self, cond_BL: Tensor, codes_BTD: Tensor, vectors_BTDE: Tensor | None) -> Tensor:
        """Condition embeddings followed by position embeddings (B, L + T, C); position t feeds the output for t + 1."""
        cond_BLC = self.cond_emb(cond_BL) + self.pos_emb_cond
        if self.input_mlp is None:
            tokens_BTC = self._embed_tokens(codes_BTD).sum(dim=-2)
        else:
            assert vectors_BTDE is not None, "the body reads code vectors"
            tokens_BTC = self.project_input(vectors_BTDE.sum(dim=-2))
        tokens_BTC = tokens_BTC + self.pos_emb_hw[:, : codes_BTD.shape[1]]
        return self.embed_drop(torch.cat([cond_BLC, tokens_BTC], dim=1))  # Eq. 8

    def project_input(self, vector_sum: Tensor) -> Tensor:
        """`input_mlp` of each of the D code vectors, summed: one product, and D times the bias."""
        if self._packed_input.active is not None:
            return self._packed_input.active(vector_sum)
        assert self.input_mlp is not None, "the body has its own table"
        return F.linear(vector_sum, self.input_mlp.weight, self.input_mlp.bias * self.depth)

    def project_head(self, vector: Tensor) -> Tensor:
        """`head_mlp` of code vectors."""
        if self._packed_head.active is not None:
            return self._packed_head.active(vector)
        assert self.head_mlp is not None, "the head has its own table"
        return self.head_mlp(vector)

    def _embed_tokens(self, codes: Tensor) -> Tensor:
        assert self.tok_emb is not None, "body and head read code vectors"
        return self.tok_emb(codes)

    @property
    def packed_head(self) -> PackedLinear | None:
        """The packed `head_mlp`, while there is one."""
        return self._packed_head.active

    def head_input(self, context_BTC: Tensor, codes_BTD: Tensor, vectors_BTDE: Tensor | None) -> Tensor:
        """Slot 0: the body's output; slot d: the codes 0..d-1 of the position (B, T, D, C)."""
        if self.head_mlp is None:
            tokens_BTDC = self._embed_tokens(codes_BTD)[:, :, :-1]
        else:
            assert vectors_BTDE is not None, "the head reads code vectors"
            tokens_BTDE = vectors_BTDE[:, :, :-1]
            if self.config.cumsum_depth_ctx:
                tokens_BTDE = tokens_BTDE.cumsum(dim=-2)  # Eq. 9
            tokens_BTDC = self.project_head(tokens_BTDE)
        return torch.cat([context_BTC.unsqueeze(2), tokens_BTDC], dim=2) + self.pos_emb_d

    @contextlib.contextmanager
    def decoding_mode(self, dtype: torch.dtype | None = None, weights: str = "dense") -> Iterator[None]:
        """Eval mode with packed weights (`WeightFormat`); everything is put back when the last who asked for it leaves.

        A model in eval mode keeps the packed copies for the next time, one in training drops them. Whoever shares the
        model with others who may want another format asks `use_weights` for theirs before every step.
        """
        form = WeightFormat(dtype, weights)
        form.validate()
        state = self.decoding
        if not state.walks:
            state.was_training = self.training
        state.walks += 1
        try:
            self.eval()
            self._pack(form)
            yield
        finally:
            state.walks -= 1
            if not state.walks:
                self._end_decoding(keep=not state.was_training)
                self.train(state.was_training)

    def use_weights(self, dtype: torch.dtype | None = None, weights: str = "dense") -> None:
        """Puts the packed weights of this format in place, in decoding mode; does nothing where they are."""
        form = WeightFormat(dtype, weights)
        if form != self.decoding.form:
            self._pack(form)

    def forget_packed(self) -> None:
        """Drops what is kept of packed weights, between two calls of `sample`.

        It frees their memory. Nothing else needs it: the next call of `sample` sees every write to a parameter, those
        past autograd (`parameter.data.copy_(...)`) too.
        """
        if not self.decoding.walks:
            self._end_decoding(keep=False)

    @property
    def packed_tensors(self) -> list[Tensor]:
        """The packed weights in place, as far as a recorded step may read them."""
        blocks = [slot for block in self.blocks for slot in (*block.attn.slots, *block.mlp.slots)]
        slots = (*blocks, *self.classifier.slots, self._packed_input, self._packed_head)
        return [tensor for slot in slots if slot.active is not None for tensor in slot.active.tensors]

    def _pack(self, form: WeightFormat) -> None:
        self.decoding.form = form
        with naming_weights(self):
            for part in (self.body_transformer, self.head_transformer, self.classifier):
                part.pack(form)
            self._pack_projections(form)

    def _end_decoding(self, keep: bool) -> None:
        self.decoding.form = None
        if not keep:
            self.decoding.clear()
        parts = (self.body_transformer, self.head_transformer, self.classifier)
        for packed in (*parts, self._packed_input, self._packed_head):
            packed.unpack(keep)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> RQTransformer:
        self.forget_packed()  # what was made for the tensors that are replaced here would keep their memory
        return super()._apply(fn, recurse)

    def _pack_projections(self, form: WeightFormat) -> None:
        if is_plain(self.input_mlp, nn.Linear):
            self._packed_input.fill([self.input_mlp.weight], [self.input_mlp.bias], form, bias_scale=self.depth)
        if self.head_mlp is not None:
            self._packed_head.fill_from((self.head_mlp,), form)

    def _check_codes(self, codes_BHWD: Tensor) -> None:
        whole = isinstance(codes_BHWD, Tensor) and not codes_BHWD.is_floating_point() and codes_BHWD.ndim == 4
        if not whole or codes_BHWD.shape[-1] != self.depth:
            raise ValueError(
                f"codes must be a tensor (B, H, W, {self.depth}) of whole numbers (int64), got {shown(codes_BHWD)}"
            )

    def _drop_condition(self, cond_BL: Tensor) -> Tensor:
        if not (self.training and self.config.has_null_condition):
            return cond_BL
        dropped_B1 = torch.rand(len(cond_BL), 1, device=cond_BL.device) < self.config.cond_drop_prob
        return cond_BL.masked_fill(dropped_B1, self.null_condition)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters, buffers excluded; works on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters())


def _position_table(length: int, embed_dim: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, length, embed_dim))


def _token_embedding(config: RQTransformerConfig) -> SharedTokenEmbedding | DepthTokenEmbedding | None:
    if config.input_emb_vqvae and config.head_emb_vqvae:
        return None
    if config.shared_tok_emb:
        return SharedTokenEmbedding(max(config.vocab_sizes), config.embed_dim)
    return DepthTokenEmbedding(config.vocab_sizes, config.embed_dim)
