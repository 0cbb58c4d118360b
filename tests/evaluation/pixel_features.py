"""A feature network of a few lines, for tests of what happens around it."""

import torch


class PixelFeatures:
    """Pooled pixels, the brightest of four quarters as class, and pooled columns as spatial features."""

    name = "pixels"
    label = "pixels12"
    resize = "none"
    dim = 12
    num_classes = 4
    fingerprint = "0" * 64
    recognises_labels = True
    device = torch.device("cpu")
    spatial_dim = 6
    spatial_label = "pixels-columns6"

    def __call__(self, image_BCHW):
        pooled_BCHW = torch.nn.functional.adaptive_avg_pool2d(image_BCHW.float() / 255, 2)
        return pooled_BCHW.flatten(1), 20 * pooled_BCHW.mean(1).flatten(1)

    def with_spatial(self, image_BCHW):
        columns_BCW = torch.nn.functional.adaptive_avg_pool2d(image_BCHW.float() / 255, (1, 2))
        return *self(image_BCHW), columns_BCW.flatten(1)
