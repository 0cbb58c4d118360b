"""CLIP and timm features with tiny networks in the place of the optional packages."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluation.metrics.clip_score import ClipScore, caption_cosine
from evaluation.networks.clip_features import ClipFeatures
from evaluation.networks.extra_networks import PixelInput, weights_sha256
from evaluation.networks.feature_networks import build_features
from evaluation.networks.timm_features import TimmFeatures
from evaluation.networks.weight_files import file_sha256
from evaluation.scores import score_images
from evaluation.statistics import ALONE, Ranks


class TinyClip(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image = torch.nn.Linear(3 * 8 * 8, 5)
        self.text = torch.nn.Embedding(256, 5)
        self.visual = types.SimpleNamespace(image_size=(8, 8), image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))

    def encode_image(self, image):
        return self.image(image.flatten(1))

    def encode_text(self, tokens):
        return self.text(tokens).mean(1)


class TinyTimm(torch.nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 6)

    def forward(self, image):
        return self.layer(image.mean((2, 3)))


class FourBytes:
    """The tokenizer of a network that reads four bytes, filled up with spaces."""

    context_length = 4

    def __call__(self, texts, context_length=4):
        return torch.tensor([[*text.encode()[:context_length].ljust(context_length)] for text in texts])


@pytest.fixture
def open_clip(monkeypatch):
    module = types.ModuleType("open_clip")
    module.asked = []

    def create_model(name, pretrained=None):
        module.asked.append((name, pretrained))
        torch.manual_seed(0 if pretrained is None else 1)
        return TinyClip()

    module.create_model = create_model
    module.get_model_config = lambda name: {"ViT-B-32": {}}.get(name)
    module.get_tokenizer = lambda name: FourBytes()
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return module


@pytest.fixture
def timm(monkeypatch):
    module = types.ModuleType("timm")
    module.asked = []

    def create_model(name, pretrained, num_classes, **options):
        module.asked.append((name, pretrained, num_classes, options))
        torch.manual_seed(1 if pretrained else 0)
        return TinyTimm()

    module.create_model = create_model
    module.is_model = lambda name: name in ("tiny", "vit_large_patch14_dinov2")
    config = {"input_size": (3, 10, 10), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    module.data = types.SimpleNamespace(resolve_model_data_config=lambda network: config)
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.fixture
def clip_file(tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "clip.pt"
    torch.save({"state_dict": {f"module.{n}": t for n, t in TinyClip().state_dict().items()}}, path)
    return path


@pytest.fixture
def image_BCHW():
    return torch.randint(256, (4, 3, 12, 20), dtype=torch.uint8)


def test_clip_features_from_a_file(open_clip, clip_file, image_BCHW):
    features = build_features("clip:ViT-B-32", weights=clip_file)
    sha256 = file_sha256(clip_file)
    assert open_clip.asked == [("ViT-B-32", None)]
    assert (features.fingerprint, features.label) == (sha256, f"clip-ViT-B-32-{sha256[:8]}")
    assert (features.name, features.resize, features.dim, features.num_classes) == (
        "clip:ViT-B-32", "cleanbicubic8crop", 5, 0,
    )  # fmt: skip
    torch.manual_seed(3)
    network, mean = TinyClip(), torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    square_BCHW = image_BCHW[:, :, 2:10, 6:14]  # 8 x 8 from the centre of images that need no resize
    small = ClipFeatures("ViT-B-32", clip_file)
    small.pixels.size = 12
    expected_BF = network.encode_image((square_BCHW / 255 - mean) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))
    got_BF, logits = features(square_BCHW)
    torch.testing.assert_close(got_BF, expected_BF.detach())
    assert logits.shape == (4, 0)
    assert small.pixels(image_BCHW).shape == (4, 3, 12, 12)


def test_clip_weights_by_tag_and_without(open_clip):
    tagged = ClipFeatures("ViT-B-32/openai")
    assert open_clip.asked == [("ViT-B-32", "openai")]
    torch.manual_seed(1)
    assert tagged.fingerprint == weights_sha256(TinyClip())
    for name in ("clip", "clip:ViT-B-32"):
        with pytest.raises(ValueError, match=r"clip:ViT-B-32 needs weights.*clip:ViT-B-32/TAG"):
            build_features(name)
    with pytest.raises(ValueError, match="'RN9' is no architecture of open_clip"):
        build_features("clip:RN9")


def clip_scores(batches, network, captions, ranks=ALONE):
    return score_images(batches, [ClipScore(network, captions)], num_images=4, ranks=ranks)


def test_clip_score_is_the_mean_cosine(open_clip, clip_file, image_BCHW):
    network = ClipFeatures("ViT-B-32", clip_file)
    captions = ["a dog", "two cats", "red", "blue"]
    image_BF, text_BF = network(image_BCHW)[0], network.text_features(captions)
    cosine_B = torch.tensor([i @ t / i.norm() / t.norm() for i, t in zip(image_BF, text_BF)])
    line = clip_scores(image_BCHW.split(3), network, captions)
    name = f"{network.label}_cleanbicubic8crop"
    mean = cosine_B.mean().item()
    assert line["metrics"] == pytest.approx(
        {f"clip-cosine_{name}": mean, f"clip-score100_{name}": 100 * mean}, rel=1e-5
    )
    assert line["clip"] == {"name": network.name, "resize": network.resize, "fingerprint": network.fingerprint}
    assert line["features"]["num_classes"] == 0
    assert line["warnings"] == ["2 of 4 captions are longer than CLIP reads and were cut for the score"]
    turned = {"image": image_BCHW, "caption": torch.tensor([3, 2, 1, 0])}
    assert clip_scores([turned], network, captions[::-1])["metrics"] == pytest.approx(line["metrics"], rel=1e-5)
    with pytest.raises(ValueError, match="1 missing"):
        clip_scores([image_BCHW[:3]], network, captions)
    with pytest.raises(ValueError, match="4 images with 3 captions"):
        caption_cosine(network, image_BCHW, captions[:3])


def test_clip_score_over_ranks(open_clip, clip_file, image_BCHW, run_ranks):
    network = ClipFeatures("ViT-B-32", clip_file)
    captions = ["a dog", "two cats", "red", "blue"]
    expected = clip_scores([image_BCHW], network, captions)["metrics"]

    def of_rank(rank, reduce):
        return clip_scores([image_BCHW[rank::3]], network, captions, Ranks(reduce, rank, 3))["metrics"]

    assert all(scores == pytest.approx(expected, rel=1e-5) for scores in run_ranks(3, of_rank))


def test_timm_features_from_a_file(timm, tmp_path, image_BCHW):
    path = tmp_path / "tiny.safetensors"
    torch.manual_seed(5)
    network = TinyTimm()
    save_file({**network.state_dict(), "head.weight": torch.zeros(2, 6)}, path)
    features = build_features("timm:tiny", weights=path)
    assert timm.asked == [("tiny", False, 0, {})]
    assert (features.label, features.resize, features.dim) == (
        f"tiny-{file_sha256(path)[:8]}", "cleanbicubic10", 6,
    )  # fmt: skip
    grey = torch.full((2, 1, 30, 20), 51, dtype=torch.uint8)
    expected = network(torch.full((2, 3, 1, 1), (0.2 - 0.5) / 0.25))
    torch.testing.assert_close(features(grey)[0], expected.detach())


def test_dinov2_takes_its_published_size_and_timms_weights(timm):
    features = build_features("dinov2")
    assert timm.asked == [("vit_large_patch14_dinov2", True, 0, {"dynamic_img_size": True})]
    assert (features.resize, features.name) == ("cleanbicubic224", "timm:vit_large_patch14_dinov2")
    assert features.label.startswith("vit-large-patch14-dinov2-")
    with pytest.raises(ValueError, match="'resnet9' is no model of timm"):
        TimmFeatures("resnet9")


@pytest.mark.parametrize(("name", "package"), [("clip", "open_clip"), ("dinov2", "timm"), ("timm:tiny", "timm")])
def test_a_missing_package_is_one_line(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"need the package {package} .*pip install") as error:
        build_features(name)
    assert "\n" not in str(error.value)


def test_wrong_files_are_one_line(timm, open_clip, tmp_path):
    wrong = tmp_path / "wrong.pt"
    torch.save({"other": torch.zeros(2)}, wrong)
    (tmp_path / "half.pt").write_bytes(b"half")
    for name in ("clip", "timm:tiny"):
        for file in ("wrong.pt", "half.pt"):
            with pytest.raises(ValueError, match=f"{file} does not hold the weights of Tiny") as error:
                build_features(name, weights=tmp_path / file)
            assert "\n" not in str(error.value)
        with pytest.raises(FileNotFoundError, match="absent"):
            build_features(name, weights=tmp_path / "absent.pt")


def test_pixels_are_those_of_pillows_resize():
    image_CHW = torch.randint(256, (3, 61, 43), dtype=torch.uint8)
    pixels = PixelInput(20, (0.0,) * 3, (1 / 255,) * 3, crop=True)(image_CHW[None])[0]
    resized = Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).resize((20, 28), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(resized.crop((0, 4, 20, 24)))).permute(2, 0, 1)
    assert (pixels - expected).abs().max() < 1.001
    assert (pixels - expected).abs().mean() < 0.01
