"""Judges of class-conditional samples: the data set's classifier and torchvision's networks, from files only."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from evaluation.networks.class_judge import FeatureJudge, TorchvisionJudge, build_judge

CLASSES = 7


class Extractor:
    """Logits that grow with the image's brightness for class 1."""

    name, label, recognises_labels, num_classes = "classifier", "classifier8-abc", True, 2

    def __call__(self, image_BCHW):
        bright_B = image_BCHW.float().mean((1, 2, 3))
        return bright_B[:, None], torch.stack([torch.zeros_like(bright_B), bright_B], 1)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.squeezenet1_1(num_classes=CLASSES).eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), path)
    return path


def images(num: int) -> torch.Tensor:
    return torch.randint(0, 256, (num, 3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_data_sets_own_classifier():
    judge = build_judge("classifier", num_classes=2, own_classifier=Extractor)
    image = torch.full((2, 3, 4, 4), 2, dtype=torch.uint8)
    score = judge(image, torch.tensor([0, 1]))
    torch.testing.assert_close(score.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(score[1] - score[0], torch.tensor(2.0))
    assert judge.label == "classifier8-abc"


def test_features_without_the_data_sets_classes_cannot_judge():
    class Other(Extractor):
        name, recognises_labels = "inception", False

    with pytest.raises(ValueError, match="inception does not know"):
        FeatureJudge(Other(), 2)


def test_a_classifier_of_other_classes_cannot_judge():
    with pytest.raises(ValueError, match="knows 2 classes, the model has 10"):
        build_judge("classifier", num_classes=10, own_classifier=Extractor)


def test_torchvision_network_with_its_published_preprocessing(network, file):
    judge = build_judge(f"squeezenet1_1:{file}", num_classes=CLASSES, own_classifier=Extractor)
    label = torch.tensor([3, 0, 6])
    transform = models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    with torch.no_grad():
        expected = network(transform(images(3))).softmax(1).log()[torch.arange(3), label]
    torch.testing.assert_close(judge(images(3), label), expected, rtol=1e-4, atol=1e-5)
    assert judge.label.startswith("squeezenet1_1-")


def test_grey_images_and_safetensors(network, file, tmp_path):
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    judges = [TorchvisionJudge("squeezenet1_1", CLASSES, path) for path in (file, tmp_path / "weights.safetensors")]
    grey = images(2)[:, :1]
    scores = [judge(grey, torch.tensor([1, 2])) for judge in judges]
    torch.testing.assert_close(*scores)
    assert judges[0].label != judges[1].label  # the hash is that of the file


def test_missing_and_foreign_weights(file, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'resnet' is neither 'classifier' nor a classifier of torchvision"):
        TorchvisionJudge("resnet", CLASSES)
    with pytest.raises(ValueError, match="does not hold the weights of squeezenet1_1 for 9 classes"):
        TorchvisionJudge("squeezenet1_1", 9, file)
    with pytest.raises(FileNotFoundError, match="no weights at .*nothing.pth: download https"):
        TorchvisionJudge("squeezenet1_1", CLASSES, tmp_path / "nothing.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="checkpoints/squeezenet1_1-"):
        TorchvisionJudge("squeezenet1_1", CLASSES)
