"""A file of images is a reference too, once its features are taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.references.reference_making import measure_reference
from runtime.errors import UserError
from scoring.image_source import open_source
from scoring.reference_loading import load_reference
from tests.evaluation.image_files import random_images, write_array
from tests.evaluation.small_features import SmallFeatures


def test_an_adm_batch_of_images_is_measured(tmp_path):
    extractor, image_NCHW = SmallFeatures(), random_images(30)
    path = write_array(tmp_path / "batch.npz", image_NCHW)
    reference = load_reference(path, extractor, batch_size=7)
    expected = measure_reference("batch", open_source(str(path)).batches(7), extractor, num_images=30)
    assert torch.equal(reference.moments.covariance_FF, expected.moments.covariance_FF)
    assert (reference.digest, reference.moments.num) == (expected.digest, 30)
    with pytest.raises(UserError, match="holds images, not moments"):
        load_reference(path)


def test_files_of_moments_and_of_neither(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(6), sigma=np.eye(6))
    assert load_reference(tmp_path / "a.npz", SmallFeatures(6)).name == "a"
    with pytest.raises(UserError, match=r"a has 6 features, small7-.* has 7"):
        load_reference(tmp_path / "a.npz", SmallFeatures(7))
    np.savez(tmp_path / "a.npz", weights=np.eye(3))
    with pytest.raises(UserError, match="holds no images: it has weights"):
        load_reference(tmp_path / "a.npz", SmallFeatures())
