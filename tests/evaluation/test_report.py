"""The page: complete in itself, escaped, with the planted copy and the worst class on top."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.metrics.neighbours import nearest_neighbours
from evaluation.report import SHOWN_SIDE, ImageSet, chosen_rows, class_tables, overlap_plot, picture, write_report

SIZE, DIM = 4, 5


def image_set(name: str, count: int, seed: int, labelled: bool = False) -> ImageSet:
    """Random images whose features are a projection of their pixels."""
    image_NCHW = torch.randint(
        0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    projection = torch.randn(3 * SIZE * SIZE, DIM, generator=torch.Generator().manual_seed(9))

    def batches():
        for index_B in torch.arange(count).split(7):
            yield {"image": image_NCHW[index_B], "index": index_B, **({"label": index_B % 3} if labelled else {})}

    return ImageSet(name, image_NCHW.flatten(1).float() @ projection, batches, ("<cat>", "dog") if labelled else ())


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


@pytest.fixture
def written(tmp_path):
    training, samples = image_set("training <images>", 30, 0), image_set("<script>samples", 20, 1)
    copied = samples.features_NF.clone()
    copied[13] = training.features_NF[22]
    samples = ImageSet(samples.name, copied, samples.batches)
    line = {
        "metrics": {"fid_x": 1.25},
        "num_images": 20,
        "warnings": ["few & small"],
        "per_class": {"class-fid_x": {"0": 1.0, "1": 9.0}},
    }
    found = write_report(tmp_path / "metrics.html", line, samples, training)
    return (tmp_path / "metrics.html").read_text(), found, samples, training


def test_the_page_is_complete_in_itself_and_escaped(written):
    page, found, *_ = written
    assert not re.search(r"(?:src|href)=(?!\"(?:data:|#))", page)
    assert "://" not in page
    assert "<script" not in page
    assert "&lt;script&gt;samples" in page
    assert "training &lt;images&gt;" in page
    assert "few &amp; small" in page
    assert "1.25" in page
    assert page.count("<svg") == 1
    assert page.index("<svg") < page.index("<h2>Samples")  # with the scores
    assert 'alt=""' not in page and "<title>Scores of &lt;script&gt;samples</title>" in page
    assert page.index("<details>") < page.index("fid_x&#34;: 1.25")  # the line is folded away
    assert set(found) == {"close_share", "median_distance", "training_median_distance"}


def test_the_copy_is_the_first_neighbour_shown(written):
    page, found, samples, training = written
    grid, shown = pictures(page)[:20], pictures(page)[20:]
    for index, image_HWC in enumerate(grid):
        np.testing.assert_array_equal(image_HWC, next_image(samples, index))
    np.testing.assert_array_equal(shown[0], next_image(samples, 13))
    np.testing.assert_array_equal(shown[1], next_image(training, 22))
    assert "sample 13" in page
    assert found["close_share"] >= 1 / 20


def next_image(images: ImageSet, index: int) -> np.ndarray:
    stacked_NCHW = torch.cat([batch["image"] for batch in images.batches()])
    return stacked_NCHW[index].permute(1, 2, 0).numpy()


def test_samples_stand_above_the_names_of_their_classes(written, tmp_path):
    assert "<figcaption>" not in written[0].partition("<h2>Samples")[2]
    labelled = image_set("samples", 20, 1, labelled=True)
    write_report(tmp_path / "metrics.html", {"metrics": {}, "num_images": 20}, labelled, written[3])
    page = (tmp_path / "metrics.html").read_text().partition("<h2>Samples")[2]
    found = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert found == [("&lt;cat&gt;", "dog", "class 2")[index % 3] for index in range(20)]


def test_classes_come_worst_first(written):
    ((name, rows),) = class_tables({"per_class": {"class-fid_x": {"0": 1.0, "7": 9.0, "<b>": 4.0}}})
    assert (name, rows) == ("class-fid_x", [("7", "9"), ("<b>", "4"), ("0", "1")])
    assert class_tables({}) == []
    page = written[0]
    assert page.index("<td>1</td><td>9</td>") < page.index("<td>0</td><td>1</td>")


def test_shown_rows_are_the_nearest_then_the_first():
    training_NF = torch.arange(10.0)[:, None].expand(-1, 2)
    samples_MF = training_NF + torch.linspace(0.4, 0.01, 10)[:, None]
    rows = chosen_rows(nearest_neighbours(samples_MF, training_NF, 1))
    assert rows == [9, 8, 7, 6, 5, 4, 0, 1, 2, 3]


def test_the_plot_has_a_point_for_each_number_of_neighbours():
    features_NF = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    plot = overlap_plot(features_NF, features_NF)
    assert plot.curves == {f"k = {k}": [(1.0, 1.0)] for k in (1, 2, 3, 5)}
    assert overlap_plot(features_NF, features_NF + 1e3).curves["k = 2"] == [(0.0, 0.0)]


def test_images_of_any_size_and_channels_are_shown_large():
    shown = picture(torch.zeros(1, 20, 20, dtype=torch.uint8), "a <b>")
    assert shown.startswith('<img src="data:image/png') and 'alt="a &lt;b&gt;" width="140"' in shown
    assert f'width="{2 * SHOWN_SIDE}"' in picture(torch.zeros(3, 4, 2 * SHOWN_SIDE, dtype=torch.uint8), "")


def test_classes_are_called_by_number_and_name():
    line = {"per_class": {"class-fid": {"0": 1.0, "1": 3.0, "7": 2.0}}}
    assert class_tables(line, ["0", "a <cat>"]) == [("class-fid", [("1 a <cat>", "3"), ("7", "2"), ("0", "1")])]
