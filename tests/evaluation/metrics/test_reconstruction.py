from __future__ import annotations

import math

import pytest
import torch

from evaluation.metrics.reconstruction import PairSimilarity, psnr, reconstruction_scores, ssim
from evaluation.scores import score_images
from evaluation.statistics import Ranks


@pytest.fixture
def pair():
    original = torch.randint(256, (5, 3, 17, 14), dtype=torch.uint8)
    noise = torch.randint(-30, 31, original.shape)
    return original, (original + noise).clamp(0, 255).to(torch.uint8)


def constant(value, shape=(1, 3, 12, 12)):
    return torch.full(shape, value, dtype=torch.uint8)


@pytest.mark.parametrize("shift", [1, 10, 255])
def test_psnr_of_a_constant_shift(shift):
    assert psnr(constant(0), constant(shift)).item() == pytest.approx(20 * math.log10(255 / shift), rel=1e-12)


def test_psnr_of_one_changed_value():
    changed = constant(7)
    changed[0, 1, 3, 4] = 9
    assert psnr(constant(7), changed).item() == pytest.approx(10 * math.log10(255**2 * 432 / 4), rel=1e-12)


def test_psnr_of_equal_images_is_the_ceiling(pair):
    assert psnr(pair[0], pair[0]).tolist() == [100] * 5


@pytest.mark.parametrize("values", [(0, 255), (100, 110), (200, 20)])
def test_ssim_of_constant_images_is_the_luminance_term(values):
    # No variance: the structure term is c2 / c2 = 1.
    a, b = (value / 255 for value in values)
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(*map(constant, values)).item() == pytest.approx(expected, rel=1e-9)


def test_ssim_of_an_inverted_image():
    # y = 255 - x: covariance is minus the variance, in every window.
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(8).expand(1, 3, 16, 16).contiguous()
    offset = torch.arange(11, dtype=torch.float64) - 5
    weight = torch.exp(-offset.square() / 4.5)
    share = weight[::2].sum() / weight.sum()  # of the pixels like the middle one
    mean_x, mean_y = share, 1 - share  # and the other way round in the next window
    variance = share * (1 - share)
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    expected = luminance * (9e-4 - 2 * variance) / (9e-4 + 2 * variance)
    assert ssim(stripes, 255 - stripes).item() == pytest.approx(expected.item(), rel=1e-9)


def test_ssim_against_the_definition_window_by_window(pair):
    offset = torch.arange(11, dtype=torch.float64) - 5
    weight = torch.exp(-(offset[:, None].square() + offset.square()) / 4.5)
    weight /= weight.sum()
    values = []
    for x, y in zip(*(image.double() for image in pair)):
        windows = []
        for c in range(3):
            for i in range(17 - 10):
                for j in range(14 - 10):
                    a, b = x[c, i : i + 11, j : j + 11], y[c, i : i + 11, j : j + 11]
                    ma, mb = (weight * a).sum(), (weight * b).sum()
                    va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
                    cov = (weight * (a - ma) * (b - mb)).sum()
                    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                    windows.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
        values.append(torch.stack(windows).mean())
    assert ssim(*pair).tolist() == pytest.approx([v.item() for v in values], rel=1e-9)
    assert ssim(pair[0], pair[0]).tolist() == pytest.approx([1] * 5, rel=1e-12)


def test_means_over_any_ranks_and_batches(pair, run_ranks):
    def distance(first, second):
        return (first - second).abs().mean((1, 2, 3), keepdim=True)

    def of_rank(rank, reduce):
        batches = zip(*(image[rank::2].split(2) for image in pair))
        return reconstruction_scores(
            batches, num_images=5, reference="val", detail="depth2", reduce=reduce, perceptual={"lpips-vgg": distance}
        )

    expected = {
        "psnr_rgb_depth2_vs_val": psnr(*pair).mean().item(),
        "ssim_gauss11_depth2_vs_val": ssim(*pair).mean().item(),
        "lpips-vgg_rgb_depth2_vs_val": (pair[0].float() - pair[1].float()).abs().mean().item() / 127.5,
    }
    for scores in run_ranks(2, of_rank):
        assert scores == pytest.approx(expected, rel=1e-6)


def test_grey_images_count_as_three_equal_channels(pair):
    grey = [image[:, :1] for image in pair]
    assert torch.equal(psnr(*grey), psnr(*(image.repeat(1, 3, 1, 1) for image in grey)))
    assert set(reconstruction_scores([tuple(grey)], num_images=5, reference="train")) == {
        "psnr_rgb_vs_train", "ssim_gauss11_vs_train",
    }  # fmt: skip


def test_wrong_input_is_an_error(pair):
    original, reconstruction = pair
    with pytest.raises(ValueError, match="uint8"):
        psnr(original.float(), reconstruction.float())
    with pytest.raises(ValueError, match=r"\(5, 3, 17, 14\) with images of shape \(4, 3, 17, 14\)"):
        ssim(original, reconstruction[:4])
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, got \(17, 10\)"):
        ssim(original[..., :10], reconstruction[..., :10])
    with pytest.raises(ValueError, match="6 pairs announced, got 5"):
        reconstruction_scores([pair], num_images=6, reference="val")
    with pytest.raises(ValueError, match="lpips gave 1 values for 5 images"):
        reconstruction_scores([pair], num_images=5, reference="val", perceptual={"lpips": lambda a, b: a.mean()})


@pytest.mark.parametrize(("size", "kinds"), [(16, ["psnr", "ssim", "l1"]), (8, ["psnr"])])
def test_the_metric_over_pairs_is_the_mean_of_all_batches_and_ranks(run_ranks, size, kinds):
    original_NCHW, image_NCHW = torch.randint(256, (2, 7, 3, size, size), dtype=torch.uint8)
    perceptual = {"l1": lambda first, second: (first - second).abs().mean((1, 2, 3))}
    metric = PairSimilarity("val", size, "depth2", perceptual)
    batch = {"image": image_NCHW, "original": original_NCHW}
    expected = score_images([batch], [metric], num_images=7)["metrics"]
    assert [name.split("_")[0] for name in expected] == kinds
    assert all(name.endswith("_depth2_vs_val") for name in expected)
    assert expected["psnr_rgb_depth2_vs_val"] == pytest.approx(psnr(original_NCHW, image_NCHW).mean().item())

    def of_rank(rank, reduce):
        pairs = zip(image_NCHW[rank::3].split(2), original_NCHW[rank::3].split(2))
        batches = [{"image": image, "original": original} for image, original in pairs]
        metric = PairSimilarity("val", size, "depth2", perceptual)
        return score_images(batches, [metric], num_images=7, ranks=Ranks(reduce, rank, 3))["metrics"]

    assert all(found == pytest.approx(expected, rel=1e-12) for found in run_ranks(3, of_rank))
    with pytest.raises(ValueError, match="their originals"):
        score_images([image_NCHW], [PairSimilarity("val", size)], num_images=7)
