"""Feature networks, statistics and judges on fake CUDA tensors: everything stays on the device until a score is asked.

Legend: B batch, C channels, H W image.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evaluation.networks import classifier, clip_features, inception
from evaluation.networks.class_judge import FeatureJudge
from evaluation.networks.classifier import train_classifier
from evaluation.networks.classifier_training import ClassifierConfig
from evaluation.networks.clip_features import ClipFeatures
from evaluation.networks.inception import InceptionFeatures, fid_inception_network
from evaluation.protocol import to_uint8
from evaluation.resizes import RESIZES
from evaluation.statistics import StreamingStatistics
from tests.gpu.fake_cuda import CUDA, no_host_sync
from tests.repository import ROOT

SMALL = ClassifierConfig(dim=16, epochs=1, min_presentations=1, batch_size=4)


def images(number: int = 2, size: int = 16) -> Tensor:
    return to_uint8(torch.rand(number, 3, size, size, device=CUDA) * 2 - 1)


def test_inception_and_statistics(gpu, monkeypatch):
    monkeypatch.setattr(inception, "find_weights", lambda source, path: (ROOT, "0" * 64))
    network = fid_inception_network()
    monkeypatch.setattr(inception, "fid_inception_network", lambda: network)
    monkeypatch.setattr(inception, "read_state_dict", lambda path: network.state_dict())
    # numbers of fake tensors cannot be looked at
    monkeypatch.setattr(inception, "load_exactly", lambda network, state: network.load_state_dict(state))
    extractor = InceptionFeatures(device=CUDA)
    once = "the count of all ranks, once per score"
    with no_host_sync({"evaluation/statistics.py:tensors": once, "evaluation/statistics.py:from_tensors": once}):
        features, logits, spatial = extractor.with_spatial(images())
        assert features.is_cuda and logits.is_cuda and spatial.is_cuda
        statistics = StreamingStatistics(extractor.dim, CUDA).update(features).update(features)
        assert statistics.gaussian().covariance_FF.is_cuda
        statistics.all_reduce(lambda tensor: None)


@pytest.mark.parametrize("name", RESIZES)
def test_resizes(gpu, name):
    with no_host_sync():
        assert RESIZES[name].network_input(images(), 24).is_cuda


def test_clip(gpu, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "stand_ins"))
    monkeypatch.setattr(clip_features, "weights_sha256", lambda network: "0" * 64)
    extractor = ClipFeatures("ViT-B-32/openai", device=CUDA)
    with no_host_sync({"evaluation/networks/clip_features.py:text_features": "captions come from the host"}):
        assert extractor(images())[0].is_cuda
        assert extractor.text_features(["a", "b"]).is_cuda


def test_the_classifier_is_trained_and_judges_on_the_device(gpu, monkeypatch):
    monkeypatch.setattr(classifier, "_cache_key", lambda *_: "0" * 64)  # hashes bytes, which fake tensors have none of
    labels = torch.zeros(8, dtype=torch.long, device=CUDA)
    legal = {
        "evaluation/networks/classifier.py:_labelled": "the training split is gathered on the host",
        "evaluation/networks/classifier.py:_collect": "the same",
        "evaluation/networks/classifier.py:train_classifier": "and brought to the device as a whole",
        "evaluation/networks/classifier_training.py:_fit": "the order of an epoch is drawn on the host",
    }
    with no_host_sync(legal):
        extractor = train_classifier([(images(8, 32), labels)], 2, config=SMALL, device=CUDA)
    assert all(parameter.is_cuda for parameter in extractor.network.parameters())
    with no_host_sync():
        assert extractor(images())[0].is_cuda
        assert FeatureJudge(extractor, 2)(images(), labels[:2]).is_cuda
