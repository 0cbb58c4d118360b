"""The sampler: an image depends on the seed and its own number, and settings that cannot work are refused at once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from rqtransformer import RQTransformer
from rqtransformer.finite_draws import NonFiniteError
from rqvae import RQVAE
from runtime.errors import UserError
from sampling import CaptionConditions, ClassConditions, Sampler, SamplingSettings, load_models
from sampling.image_files import save_images

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module")
def models() -> tuple[RQVAE, RQTransformer]:
    stage1, stage2 = GOLDEN / "rqvae-shared" / "model.pt", GOLDEN / "rqtransformer-class" / "model.pt"
    return load_models(stage1, stage2, torch.device("cpu"))


def sampler(models: tuple[RQVAE, RQTransformer], **settings: object) -> Sampler:
    stage1, stage2 = models
    return Sampler(stage1, stage2, ClassConditions(stage2.config.vocab_size_cond), SamplingSettings(**settings))


def images(sampler: Sampler, num: int, world_size: int = 1) -> dict[int, tuple[int, torch.Tensor]]:
    """index -> (class, image), from all ranks."""
    found = {}
    for rank in range(world_size):
        for batch in sampler.images(num, rank, world_size):
            assert batch["image"].dtype == torch.uint8
            for index, label, image in zip(batch["index"].tolist(), batch["label"].tolist(), batch["image"]):
                assert index not in found
                found[index] = (label, image)
    return found


@pytest.mark.parametrize(("batch_size", "world_size", "num"), [(2, 1, 5), (3, 2, 5), (100, 3, 7), (1, 9, 5)])
def test_neither_batches_nor_ranks_nor_the_number_matter(models, batch_size, world_size, num):
    expected = images(sampler(models, seed=3), 5)
    found = images(sampler(models, seed=3, batch_size=batch_size), num, world_size)
    assert sorted(found) == list(range(num))
    classes = models[1].config.vocab_size_cond
    for index, (label, image) in expected.items():
        assert found[index][0] == label == index % classes
        # the codes are equal bit for bit; the decoder may round another batch another way
        assert (found[index][1].int() - image.int()).abs().max() <= 1


def test_codes_are_drawn_from_seed_index_and_condition(models):
    index_B, label_B = torch.tensor([4, 9]), torch.tensor([1, 0])
    codes_BHWD = sampler(models).draw(index_B, label_B)
    assert torch.equal(sampler(models).draw(index_B[1:], label_B[1:]), codes_BHWD[1:])
    assert not torch.equal(sampler(models, seed=1).draw(index_B, label_B), codes_BHWD)


def test_settings_in_force_are_those_given_and_else_the_checkpoints(models):
    assert sampler(models, temperature=0.5, top_k=3).arguments.items() >= {"temperature": 0.5, "top_k": 3}.items()
    defaults = models[1].sampling_defaults
    assert sampler(models).arguments.get("top_k") == defaults.get("top_k")


def test_settings_that_cannot_work_are_refused_before_a_draw(models):
    with pytest.raises(ValueError, match="temperature"):
        sampler(models, temperature=-1.0)


def test_conditions_are_numbers_of_classes_or_rows_of_tokens():
    number_B = torch.tensor([2, 0])
    assert ClassConditions(1).ids(number_B) is None
    assert torch.equal(ClassConditions(3).ids(number_B), number_B)
    captions = CaptionConditions(torch.arange(6).view(3, 2))
    assert (captions.num, captions.key) == (3, "caption")
    assert captions.ids(number_B).tolist() == [[4, 5], [0, 1]]


def test_classes_without_images_are_not_asked_for():
    classes = ClassConditions.of_counts(torch.tensor([0, 3, 0, 9]))
    assert classes.num == 2 and classes.of_samples(5).tolist() == [0, 1, 0, 1, 0]
    assert classes.names(torch.tensor([1, 0])).tolist() == classes.ids(torch.tensor([1, 0])).tolist() == [3, 1]
    assert classes.fits(4) and classes.fits(10) and not classes.fits(3)
    often = ClassConditions.of_counts(torch.tensor([0, 3, 0, 9]), by_frequency=True)
    assert torch.bincount(often.names(often.of_samples(8))).tolist() == [0, 2, 0, 6]
    everything = ClassConditions.of_counts(torch.tensor([1, 2, 3]))
    assert everything.classes is None and everything.of_samples(4).tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="no class has images"):
        ClassConditions.of_counts(torch.tensor([0, 0]))


@pytest.mark.parametrize("file_format", ["png", "npz"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_numbers_that_are_not_finite_end_in_an_error_and_no_image_stays(models, stage, file_format, tmp_path):
    models = copy.deepcopy(models)
    drawer = sampler(models, batch_size=2)
    batches = save_images(drawer.images(6), tmp_path, file_format, 6, (models[0].config.ddconfig.resolution,) * 2)
    next(batches)
    weight, name = {
        "stage1": (models[0].decoder.conv_out.bias, "decoder.conv_out.bias"),
        "stage2": (models[1].classifier.layer_norm.weight, "classifier.layer_norm.weight"),
    }[stage]
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=f"not finite.*: {name}$"):
        next(batches)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_checkpoint_with_weights_that_are_not_finite_is_refused_by_name(models, tmp_path):
    stage1 = copy.deepcopy(models[0])
    with torch.no_grad():
        stage1.decoder.conv_out.bias[0] = float("inf")
    stage1.save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="the weights of .*broken are not finite: decoder.conv_out.bias"):
        load_models(tmp_path / "broken", GOLDEN / "rqtransformer-class" / "model.pt", torch.device("cpu"))
