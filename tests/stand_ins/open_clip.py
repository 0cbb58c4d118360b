"""Stands in for the package open_clip: one tiny network with random weights, the same for every tag.

A test puts this folder on the path (`sys.path`, or PYTHONPATH for other processes).
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

NAMES = ("ViT-B-32", "ViT-B-32-quickgelu")
TAGS = ("openai",)


class TinyClip(torch.nn.Module):
    """Colours of the image against letters of the text."""

    def __init__(self) -> None:
        super().__init__()
        self.image = torch.nn.Linear(3 * 8 * 8, 5)
        self.text = torch.nn.Embedding(256, 5)
        self.visual = SimpleNamespace(image_size=8, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))

    def encode_image(self, image):
        return self.image(image.flatten(1))

    def encode_text(self, tokens):
        return self.text(tokens).mean(1)


def get_model_config(name):
    return {} if name in NAMES else None


def create_model(name, pretrained=None):
    if pretrained not in (None, *TAGS):
        raise RuntimeError(f"no weights {pretrained}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyClip()


class TinyTokenizer:
    """Bytes, filled up with spaces."""

    context_length = 32

    def __call__(self, texts, context_length=32):
        return torch.tensor([[*text.encode()[:context_length].ljust(context_length)] for text in texts])


def get_tokenizer(name):
    return TinyTokenizer()
