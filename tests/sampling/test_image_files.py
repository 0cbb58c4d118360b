"""Samples on disk are the samples: PNG files, the `.npz` of the ADM evaluator and memory give the same scores.

Axes: B batch, H W image, N images.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.metrics.frechet import FrechetDistance
from evaluation.metrics.inception_score import InceptionScore
from evaluation.metrics.recognition import RecognitionAccuracy
from evaluation.networks.classifier import ClassifierConfig, train_classifier
from evaluation.networks.inception import InceptionFeatures, fid_inception_network
from evaluation.protocol import from_uint8, to_uint8
from evaluation.references.image_digest import ImageDigest
from evaluation.references.reference_making import digested
from evaluation.scores import score_images
from evaluation.statistics import Gaussian
from sampling.image_files import save_images
from scoring.image_source import open_source

NUM_IMAGES, NUM_CLASSES, SIZE = 23, 4, 16


@pytest.fixture(scope="module")
def decoded_NCHW():
    """Float images as a decoder gives them, beyond [-1, 1] and between the steps of uint8."""
    return 0.7 * torch.randn(NUM_IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def sampled(decoded_NCHW, batch_size=5):
    for index_B in torch.arange(NUM_IMAGES).split(batch_size):
        yield {"image": to_uint8(decoded_NCHW[index_B]), "index": index_B, "label": index_B % NUM_CLASSES}


@pytest.fixture(scope="module")
def saved(decoded_NCHW, tmp_path_factory):
    """Folders of the same samples, by format; saving passes the batches on unchanged."""
    folders = {}
    for file_format in ("png", "npz"):
        folders[file_format] = tmp_path_factory.mktemp(file_format)
        passed = list(save_images(sampled(decoded_NCHW), folders[file_format], file_format, NUM_IMAGES, (SIZE, SIZE)))
        assert torch.equal(torch.cat([batch["image"] for batch in passed]), to_uint8(decoded_NCHW))
    return folders


@pytest.fixture(scope="module", params=["classifier", "inception"])
def extractor(request, decoded_NCHW, tmp_path_factory):
    if request.param == "inception":
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("weights") / "random.pth"
        torch.save(fid_inception_network().state_dict(), path)
        return InceptionFeatures(path, dim=64)
    config = ClassifierConfig(min_presentations=200, max_presentations=200, dim=16)
    return train_classifier(sampled(decoded_NCHW), NUM_CLASSES, config=config)


def scores_of(batches, extractor):
    mixing_FF = torch.randn(extractor.dim, extractor.dim, generator=torch.Generator().manual_seed(1)).double()
    reference = Gaussian(torch.zeros(extractor.dim, dtype=torch.float64), mixing_FF @ mixing_FF.T, 50_000)
    metrics = [FrechetDistance(extractor, {"train": reference})]
    if extractor.recognises_labels:
        metrics += [InceptionScore(extractor, NUM_IMAGES, splits=3), RecognitionAccuracy(extractor)]
    return score_images(batches, metrics, extractor, num_images=NUM_IMAGES)["metrics"]


def test_scores_from_disk_equal_scores_from_memory_bit_for_bit(decoded_NCHW, saved, extractor):
    expected = scores_of(sampled(decoded_NCHW), extractor)
    assert len(expected) == (4 if extractor.recognises_labels else 1)
    assert all(np.isfinite(value) for value in expected.values())
    for folder in saved.values():
        assert scores_of(open_source(str(folder)).batches(5), extractor) == expected


def test_images_labels_and_digests_survive(decoded_NCHW, saved):
    digests = set()
    for batches in (sampled(decoded_NCHW, 4), *(open_source(str(folder)).batches(7) for folder in saved.values())):
        digest = ImageDigest(ordered=True, labelled=True)
        image_NCHW = torch.cat([batch["image"] for batch in digested(batches, digest)])
        assert torch.equal(image_NCHW, to_uint8(decoded_NCHW))
        digests.add(digest.hexdigest())
    assert len(digests) == 1
    assert torch.equal(to_uint8(from_uint8(image_NCHW)), image_NCHW)


def test_the_layout_of_the_adm_evaluator(decoded_NCHW, saved):
    """It reads `arr_0` front to back: uint8, NHWC, C order; guided samplers add the classes as `arr_1`."""
    archive = np.load(saved["npz"] / "samples.npz", allow_pickle=False)
    assert archive.files[0] == "arr_0"
    image_NHWC, label_N = archive["arr_0"], archive["arr_1"]
    assert (image_NHWC.dtype, image_NHWC.shape) == (np.uint8, (NUM_IMAGES, SIZE, SIZE, 3))
    assert image_NHWC.flags["C_CONTIGUOUS"]
    assert (label_N.dtype, label_N.shape) == (np.int64, (NUM_IMAGES,))
    np.testing.assert_array_equal(image_NHWC, to_uint8(decoded_NCHW).permute(0, 2, 3, 1))
    np.testing.assert_array_equal(label_N, np.arange(NUM_IMAGES) % NUM_CLASSES)
    np.testing.assert_array_equal(archive["labels"], label_N)
    assert [file.name for file in saved["npz"].iterdir()] == ["samples.npz"]


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'gif' is unknown; choose one of png, npz"):
        list(save_images([], tmp_path, "gif", 1, (4, 4)))
