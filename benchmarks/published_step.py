"""The stage-2 training step of the published implementation (Lee et al., 2022) in plain PyTorch, for comparisons.

Its arithmetic, operation by operation, under its parameter names, so that it runs on the weights of our models: every
depth searches the whole codebook and keeps all probabilities; codes are drawn by `torch.multinomial`; the body projects
every code vector before it sums them; query, key and value are three products; attention multiplies, masks, takes the
softmax and multiplies; dropout is PyTorch's; the loss takes logarithms of all probabilities; AdamW goes from parameter
to parameter. Written for `stage2_comparison`, and only for the model that is compared there.

Legend: B batch, C channels or width, H W grid, T = H*W positions, L sequence length, D code depth, E code-vector size,
K codebook size, A attention heads, N rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.config import StackConfig
from rqvae import RQVAE
from rqvae.blocks import AttnBlock, ResBlock
from rqvae.encoder_decoder import Encoder

SOFT_EPS = 1e-7  # inside the logarithm of the loss


class PublishedTokenizer:
    """The frozen encoder and the search for soft codes, on the weights of a model of ours.

    The convolutions are those of our encoder; what stands between them is done as published.
    """

    def __init__(self, tokenizer: RQVAE, depth: int) -> None:
        self.encoder, self.project = tokenizer.encoder, tokenizer.quant_conv
        self.books_KE = [tokenizer.codebook(d) for d in range(depth)]

    @torch.no_grad()
    def soft_codes(self, image_BCHW: Tensor, temp: float, stochastic: bool) -> tuple[Tensor, Tensor]:
        """Images -> probabilities of every code (B, H, W, D, K) and codes (B, H, W, D)."""
        latent_BHWE = self.project(encode(self.encoder, image_BCHW)).permute(0, 2, 3, 1).contiguous()
        residual_NE = latent_BHWE.view(-1, latent_BHWE.shape[-1]).clone()
        soft, hard = [], []
        for book_KE in self.books_KE:
            squares_NK = residual_NE.square().sum(1, keepdim=True) + book_KE.t().square().sum(0, keepdim=True)
            distance_NK = torch.addmm(squares_NK, residual_NE, book_KE.t(), alpha=-2.0)
            probs_NK = F.softmax(-distance_NK / temp, dim=-1)
            codes_N = torch.multinomial(probs_NK, 1).squeeze(1) if stochastic else distance_NK.argmin(dim=-1)
            residual_NE -= F.embedding(codes_N, book_KE)
            soft.append(probs_NK)
            hard.append(codes_N)
        grid = latent_BHWE.shape[:-1]
        probs_NDK, codes_ND = torch.stack(soft, dim=1), torch.stack(hard, dim=1)
        return probs_NDK.view(*grid, *probs_NDK.shape[1:]), codes_ND.view(*grid, -1)

    def vectors(self, codes_BHWD: Tensor) -> Tensor:
        """Code vectors (B, H, W, D, E)."""
        parts = [F.embedding(codes_BHWD[..., d], book_KE) for d, book_KE in enumerate(self.books_KE)]
        return torch.stack(parts, dim=-2)


def encode(encoder: Encoder, image_BCHW: Tensor) -> Tensor:
    """Images -> feature maps."""

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def residual_block(block: ResBlock, x: Tensor) -> Tensor:
        h = block.conv1(swish(block.norm1(x)))
        h = block.conv2(block.dropout(swish(block.norm2(h))))
        return (x if block.nin_shortcut is None else block.nin_shortcut(x)) + h

    def attention(block: AttnBlock, x: Tensor) -> Tensor:
        normed = block.norm(x)
        query, key, value = (conv(normed).flatten(2) for conv in (block.q, block.k, block.v))
        scores_BTT = torch.bmm(query.transpose(1, 2), key) * query.shape[1] ** -0.5
        mixed = torch.bmm(value, F.softmax(scores_BTT, dim=2).transpose(1, 2))
        return x + block.proj_out(mixed.view_as(x))

    h = encoder.conv_in(image_BCHW)
    for layer in encoder.layers():
        if isinstance(layer, ResBlock):
            h = residual_block(layer, h)
        elif isinstance(layer, AttnBlock):
            h = attention(layer, h)
        else:
            h = layer(h)
    return encoder.conv_out(swish(encoder.norm_out(h)))


class Attention(nn.Module):
    """Causal self-attention by its definition."""

    def __init__(self, width: int, num_heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.num_heads, self.resid_drop = num_heads, nn.Dropout(dropout)
        self.mask_LL: Tensor
        self.register_buffer("mask_LL", torch.ones(length, length).tril(), persistent=False)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) -> the same shape."""
        length, width = x_BLC.shape[1:]
        query, key, value = (
            linear(x_BLC).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        scores_BALL = query @ key.transpose(2, 3) * (width // self.num_heads) ** -0.5
        scores_BALL = scores_BALL.masked_fill(self.mask_LL[:length, :length] == 0, float("-inf"))
        out_BLC = (F.softmax(scores_BALL, dim=-1) @ value).transpose(1, 2).contiguous().flatten(2)
        return self.resid_drop(self.proj(out_BLC))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, num_heads, length, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) -> the same shape."""
        x_BLC = x_BLC + self.attn(self.ln1(x_BLC))
        return x_BLC + self.mlp(self.ln2(x_BLC))


class Stack(nn.Module):
    """Blocks in a row."""

    def __init__(self, width: int, config: StackConfig, length: int) -> None:
        super().__init__()
        block = config.block
        self.blocks = nn.Sequential(
            *(Block(width, block.n_head, length, block.resid_pdrop) for _ in range(config.n_layer))
        )

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) -> the same shape."""
        out_BLC: Tensor = self.blocks(x_BLC)
        return out_BLC


class PublishedTransformer(nn.Module):
    """Body and head on the code vectors of a tokenizer, conditioned on a class."""

    def __init__(self, config: RQTransformerConfig) -> None:
        super().__init__()
        height, width, depth = config.block_size
        size, code_dim = config.embed_dim, config.code_dim
        self.pos_emb_cond = nn.Parameter(torch.empty(1, 1, size))
        self.pos_emb_hw = nn.Parameter(torch.empty(1, height * width, size))
        self.pos_emb_d = nn.Parameter(torch.empty(1, depth, size))
        self.cond_emb = nn.Embedding(config.vocab_size_cond, size)
        self.input_mlp, self.head_mlp = nn.Linear(code_dim, size), nn.Linear(code_dim, size)
        self.body_transformer = Stack(size, config.body, height * width)
        self.head_transformer = Stack(size, config.head, depth)
        self.classifier = nn.Sequential()
        self.classifier.add_module("layer_norm", nn.LayerNorm(size))
        self.classifier.add_module("linear", nn.Linear(size, max(config.vocab_sizes)))

    def forward(self, codes_BHWD: Tensor, tokenizer: PublishedTokenizer, cond_B: Tensor) -> Tensor:
        """Logits (B, H, W, D, K)."""
        with torch.no_grad():
            vectors_BTDE = tokenizer.vectors(codes_BHWD).flatten(1, 2)
        tokens_BTC = self.input_mlp(vectors_BTDE).sum(dim=-2) + self.pos_emb_hw
        cond_BLC = self.cond_emb(cond_B).unsqueeze(1) + self.pos_emb_cond
        context_BTC = self.body_transformer(torch.cat((cond_BLC, tokens_BTC[:, :-1]), dim=1))
        depths_BTDC = self.head_mlp(vectors_BTDE.cumsum(dim=-2))[:, :, :-1]
        head_in_BTDC = torch.cat((context_BTC.unsqueeze(2), depths_BTDC), dim=2) + self.pos_emb_d
        head_out_NDC = self.head_transformer(head_in_BTDC.flatten(0, 1))
        return self.classifier(head_out_NDC).view(*codes_BHWD.shape, -1)


class PublishedStep:
    """One optimizer step on images and classes.

    Args:
        model: ours; its weights are copied.
        tokenizer: ours, frozen; its weights are shared.
        rate, betas: of AdamW.
        max_norm: of the gradient.
        temp, stochastic: of the soft codes.
    """

    def __init__(
        self,
        model: RQTransformer,
        tokenizer: RQVAE,
        *,
        rate: float,
        betas: tuple[float, float],
        max_norm: float,
        temp: float,
        stochastic: bool,
    ) -> None:
        self.model = PublishedTransformer(model.config)
        self.model.load_state_dict(model.state_dict())
        self.tokenizer = PublishedTokenizer(tokenizer, model.depth)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=betas, weight_decay=0.0)
        self.max_norm, self.temp, self.stochastic = max_norm, temp, stochastic

    def __call__(self, image_BCHW: Tensor, cond_B: Tensor) -> float:
        """The loss before the step."""
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        probs_BHWDK, codes_BHWD = self.tokenizer.soft_codes(image_BCHW, self.temp, self.stochastic)
        logits_BHWDK = self.model(codes_BHWD, self.tokenizer, cond_B)
        log_probs_BHWDK = torch.log(F.softmax(logits_BHWDK, dim=-1) + SOFT_EPS)
        loss = -(probs_BHWDK * log_probs_BHWDK).sum(dim=-1).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        return loss.item()
