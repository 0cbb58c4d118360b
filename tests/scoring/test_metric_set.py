"""The table of metrics: its names, the order of a result line, what a metric needs, and that one row is enough."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from evaluation.metrics.metric import Metric, MetricResult
from evaluation.references.reference_files import Reference
from evaluation.scores import score_images
from evaluation.statistics import statistics_of
from runtime.errors import UserError
from scoring import metric_set
from scoring.metric_set import METRICS, MetricInputs, MetricRow, MetricSet
from tests.evaluation.pixel_features import PixelFeatures

NUM = 24


@pytest.fixture
def image_NCHW():
    return torch.randint(256, (NUM, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reference(image_NCHW):
    features_NF, _, spatial_NF = PixelFeatures().with_spatial(255 - image_NCHW)
    moments, spatial = (statistics_of([rows], rows.shape[1]).gaussian() for rows in (features_NF, spatial_NF))
    return Reference("train", moments, features_NF, spatial, torch.arange(NUM) % 4)


def test_unknown_names_list_the_choices():
    with pytest.raises(UserError, match="metrics='fid,psnr': choose from fid, is, kid, prdc, sfid, class-fid"):
        MetricSet.parse("fid,psnr")
    with pytest.raises(UserError, match="choose from"):
        MetricSet.parse(" ")
    assert MetricSet.parse("[FID, is, fid]").names == ("fid", "is")


def test_values_stand_in_the_order_of_the_places_whatever_was_asked_first(image_NCHW, reference):
    asked = MetricSet.parse("class-fid,prdc,kid,accuracy,is,sfid,fid")
    metrics = asked.build(MetricInputs(NUM, PixelFeatures(), reference))
    assert list(metrics) == ["fid", "sfid", "is", "accuracy", "kid", "prdc", "class-fid"]
    batch = {"image": image_NCHW, "label": torch.arange(NUM) % 4}
    line = score_images([batch], metrics.values(), PixelFeatures(), num_images=NUM)
    kinds = [name.split("_")[0] for name in line["metrics"]]
    assert kinds == [
        "fid", "sfid", "is", "is-std", "accuracy", "kid", "kid-std", "precision", "recall", "density", "coverage",
        "class-fid",
    ]  # fmt: skip
    assert line["references"] == {"train": {"num_images": NUM}}
    assert list(line)[-3:] == ["kid_seed", "per_class", "seconds"]


def test_places_are_all_different():
    assert sorted(row.place for row in METRICS.values()) == list(range(len(METRICS)))


def test_what_is_needed_follows_from_the_rows():
    assert not MetricSet.parse("clip").by_reference
    assert not MetricSet(()).by_reference
    assert MetricSet.parse("fid,kid").keeps_features and not MetricSet.parse("fid,is").keeps_features
    assert MetricSet.parse("sfid").keeps_spatial and not MetricSet.parse("kid").keeps_spatial
    assert MetricSet.parse("fid,class-fid,cas,accuracy").labelled == ("accuracy", "cas", "class-fid")
    assert (MetricSet.parse("fid") | MetricSet(("fid", "accuracy"))).names == ("fid", "accuracy")


def test_networks_that_cannot_give_a_metric_are_refused():
    with pytest.raises(UserError, match="metrics=sfid: clip has no spatial features"):
        MetricSet.parse("sfid").check_name("clip")
    with pytest.raises(UserError, match="metrics=accuracy needs --features classifier"):
        MetricSet.parse("accuracy").check_name("inception")
    extractor = PixelFeatures()
    extractor.num_classes = 0
    with pytest.raises(UserError, match="metrics=is: pixels12 has no classes"):
        MetricSet.parse("fid,is").check(extractor)


def test_a_new_metric_is_a_row(monkeypatch, image_NCHW):
    class Brightness(Metric):
        needs_network = False
        total = 0.0

        def update(self, batch):
            self.total += batch.image_BCHW.double().mean((1, 2, 3)).sum().item()

        def result(self, whole):
            return MetricResult({"brightness": self.total / NUM}, networks={})

    row = MetricRow("mean pixel", lambda inputs: Brightness(), place=9)
    monkeypatch.setattr(metric_set, "METRICS", METRICS | {"brightness": row})
    metrics = MetricSet.parse("brightness").build(MetricInputs(NUM)).values()
    line = score_images(image_NCHW.split(7), metrics, num_images=NUM)
    assert line["metrics"] == {"brightness": pytest.approx(image_NCHW.double().mean().item())}
    assert line["features"] is None


def test_rows_and_sets_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        METRICS["fid"].place = 3
