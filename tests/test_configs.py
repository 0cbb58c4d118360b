"""Every YAML file under configs/ loads strictly; published ones have the published sizes, ours run and fit together.

Legend: B batch, H W code grid, D code depth, V vocabulary.
"""

from __future__ import annotations

import json

import pytest
import torch

from data import build_dataset
from data.build import dataset_request
from data.captions import pair_grammar, shape_grammar
from data.tokenizers.tokenizer_loading import tokenizer_named
from rqtransformer import RQTransformer
from rqtransformer.model import count_parameters as count_transformer_parameters
from rqvae import RQVAE
from rqvae.losses.discriminator import PatchDiscriminator
from rqvae.model import count_parameters
from runtime.config import load_config
from tests.golden_files import published_keys
from tests.repository import CONFIGS
from training.experiment import plan_batches
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config, complete_arch

PUBLISHED = {
    entry["config"].removeprefix("configs/"): entry for entry in published_keys().values() if "config" in entry
}
FOLDER_256 = "folder/stage1/folder-256-rqvae.yaml", "folder/stage2/folder-256-rqtransformer.yaml"
FFHQ = "ffhq/stage1/ffhq256-rqvae-8x8x4.yaml", "ffhq/stage2/ffhq256-rqtransformer-8x8x4-350M.yaml"
LARGE_TEXT = "cc3m/cc3m-cc12m-yfcc-rqtransformer-8x8x4-3900M.yaml"  # published as a checkpoint, without its file
OURS = ("bottlenecks", "cifar10", "demo", "demo-text", "digits", "fashion-mnist", "folder", "openmoji", "synthetic")


def _paths(stage: str, *folders: str) -> list[str]:
    paths = [path for folder in folders for path in sorted(CONFIGS.glob(f"{folder}/**/*.yaml"))]
    found = [str(path.relative_to(CONFIGS)) for path in paths if ("stage1" in path.parts) == (stage == "stage1")]
    return [path for path in found if path not in FOLDER_256]  # as large as the published ones


def _stage1(path: str) -> Stage1Config:
    return load_config(Stage1Config, CONFIGS / path)


def _stage2(path: str) -> Stage2Config:
    return load_config(Stage2Config, CONFIGS / path)


def _published(kind: str) -> list[str]:
    return [path for path, entry in PUBLISHED.items() if entry["kind"] == kind]


def test_all_published_experiments_are_here_and_none_is_forgotten():
    found = {str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("**/*.yaml")}
    assert set(PUBLISHED) <= found and len(PUBLISHED) == 14
    tested = set(PUBLISHED) | {LARGE_TEXT, *FOLDER_256} | set(_paths("stage1", *OURS)) | set(_paths("stage2", *OURS))
    assert found == tested


@pytest.mark.parametrize("path", _published("rq-vae"))
def test_published_stage1(path):
    expected, config = PUBLISHED[path], _stage1(path)
    with torch.device("meta"):
        model = RQVAE(config.arch.model_config())
        discriminator = PatchDiscriminator.from_config(config.gan.disc.arch)
    assert count_parameters(model) == expected["parameters"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["trainable"]
    parts = {part: count_parameters(getattr(model, part)) for part in expected["parts"]}
    assert parts == expected["parts"]
    assert count_parameters(discriminator) == published_keys()["discriminator"]["parameters"]
    hparams = config.arch.hparams
    assert (hparams.codebook_update, hparams.loss_type, hparams.restart_unused_codes) == ("per_depth", "mse", True)
    assert dataset_request(config.dataset, "train").resolution == config.arch.ddconfig.image_size == (256, 256)


@pytest.mark.parametrize("path", _published("rq-transformer"))
def test_published_stage2(path):
    expected, config = PUBLISHED[path], _stage2(path)
    config.arch.vocab_size = config.dataset.vocab_size
    with torch.device("meta"):
        model = RQTransformer(config.arch)
    assert count_transformer_parameters(model) == expected["parameters"]
    assert len(model.state_dict()) == expected["entries"]
    assert config.experiment.total_batch_size % config.experiment.batch_size == 0
    assert (config.optimizer.init_lr, config.optimizer.weight_decay, config.optimizer.max_gn) == (5e-4, 1e-4, 1.0)
    assert (config.loss.type, config.loss.temp, config.loss.stochastic_codes) == (
        "soft_target_cross_entropy",
        0.5,
        True,
    )


@pytest.mark.parametrize("path", [path for path in PUBLISHED if not path.startswith("cc3m")])
def test_published_data_sections(path):
    config = _stage1(path) if "/stage1/" in path else _stage2(path)
    request = dataset_request(config.dataset, "train")
    folder = path.split("/")[0]
    assert request.resolution == (256, 256)
    assert {"imagenet256": ("imagenet", "imagenet"), "ffhq": ("ffhq", "ffhq")}.get(folder, (folder, "lsun")) == (
        request.name,
        request.crop,
    )


@pytest.mark.parametrize("path", ["cc3m/cc3m-rqtransformer-8x8x4-650M.yaml", LARGE_TEXT])
def test_text_experiments_read_their_words_like_the_model(path, tmp_path, monkeypatch):
    config = _stage2(path)
    assert config.dataset.vocab_size_txt == config.arch.vocab_size_cond
    assert config.dataset.context_length == config.arch.block_size_cond
    assert (config.loss.txt_weight, config.loss.img_weight) == (0.1, 0.9)
    request = dataset_request(config.dataset, "train")
    assert (request.name, request.crop, request.resolution) == ("cc3m", "dalle", (256, 256))
    monkeypatch.setenv("RQ_DATA_ROOT", str(tmp_path))
    files = tmp_path / "tokenizer-files"
    files.mkdir()
    (files / "bpe-16k-vocab.json").write_text(json.dumps({"[PAD]": 0, "[UNK]": 1, "a": 2, "a</w>": 3, "aa</w>": 4}))
    (files / "bpe-16k-merges.txt").write_text("#version: 0.2\na a</w>\n")
    tokenizer = tokenizer_named(config.dataset)
    assert tokenizer.settings.bpe_dropout == 0.1
    assert tokenizer.encode("A aa b") == [3, 4, 1] + [0] * (config.arch.block_size_cond - 3)


def test_large_text_model_has_the_published_size():
    config = _stage2(LARGE_TEXT)
    config.arch.vocab_size = config.dataset.vocab_size
    with torch.device("meta"):
        model = RQTransformer(config.arch)
    assert count_transformer_parameters(model) == 3_903_996_928  # published: 3.9B
    assert (config.experiment.sample.top_k, config.experiment.sample.top_p) == (1024, 0.95)


@pytest.mark.parametrize("path", _paths("stage1", *OURS))
def test_our_stage1(path):
    config = _stage1(path)
    assert config.arch.hparams.codebook_update == "deferred"
    assert dataset_request(config.dataset, "train").resolution == config.arch.ddconfig.image_size
    assert plan_batches(config.experiment, num_images=10_000, world_size=1).total_steps > 0
    model = RQVAE(config.arch.model_config()).eval()
    with torch.no_grad():
        recon, _ = model(torch.zeros(1, 3, 32, 32))
    assert recon.shape == (1, 3, 32, 32)


def test_folder_at_256_is_the_published_model():
    """Every size but what the stage-1 checkpoint gives, which stage 2 is not told."""
    config, second = _stage1(FOLDER_256[0]), _stage2(FOLDER_256[1])
    with torch.device("meta"):
        tokenizer = RQVAE(config.arch.model_config())
        model = RQTransformer(complete_arch(second, tokenizer))
    assert count_parameters(tokenizer) == PUBLISHED[FFHQ[0]]["parameters"]
    assert count_transformer_parameters(model) == PUBLISHED[FFHQ[1]]["parameters"]
    for part in (config, second):
        assert plan_batches(part.experiment, num_images=10_000, world_size=8).global_batch == 128


@pytest.mark.parametrize("size", [64, 256])
def test_stage2_of_a_folder_leaves_out_what_stage1_says(size):
    first, second = (
        _stage1(f"folder/stage1/folder-{size}-rqvae.yaml"),
        _stage2(f"folder/stage2/folder-{size}-rqtransformer.yaml"),
    )
    arch = second.arch
    assert (arch.block_size, arch.vocab_size, arch.input_embed_dim) == ([], None, None)
    assert second.dataset.resolution is second.dataset.vocab_size is None and second.vqvae.ema
    assert first.arch.ema and arch.ema and first.experiment.score.every_steps and second.experiment.score.every_steps


def _stage1_of(path: str) -> str:
    """The only stage-1 file of the same folder, or that with the same name but for the model."""
    found = _paths("stage1", path.split("/")[0])
    return found[0] if len(found) == 1 else path.replace("stage2", "stage1").replace("rqtransformer", "rqvae")


@pytest.mark.parametrize("path", _paths("stage2", *OURS))
def test_our_stage2_fits_its_stage1(path):
    config = _stage2(path)
    stage1 = _stage1_of(path)
    tokenizer = RQVAE(_stage1(stage1).arch.model_config()).eval()
    arch = complete_arch(config, tokenizer)
    model = RQTransformer(arch).eval()
    codes_BHWD = torch.zeros(1, *arch.block_size, dtype=torch.int64)
    cond = torch.zeros(1, arch.block_size_cond, dtype=torch.int64)
    with torch.no_grad():
        output = model(codes_BHWD, tokenizer, cond if arch.block_size_cond > 1 else cond[:, 0])
    assert output.logits.shape == (*codes_BHWD.shape, max(arch.vocab_sizes))
    images = _stage1(stage1).dataset
    if config.dataset.resolution is None:  # that of the checkpoint
        config.dataset.resolution = images.resolution
    first, second = (dataset_request(part, "train") for part in (images, config.dataset))
    assert (first.name, first.crop, first.resolution) == (second.name, second.crop, second.resolution)


GRAMMARS = {
    "synthetic": (len(shape_grammar.shape_vocabulary()), shape_grammar.CAPTION_LENGTH),
    "synthetic-pairs": (len(pair_grammar.pair_vocabulary()), pair_grammar.CAPTION_LENGTH),
}


@pytest.mark.parametrize("path", _paths("stage2", "digits", "demo", "demo-text", "synthetic"))
def test_conditions_fit_the_data(path):
    config = _stage2(path)
    dataset = build_dataset(config.dataset, "val")
    if config.arch.block_size_cond == 1:
        assert config.arch.vocab_size_cond == dataset.num_classes
    else:
        assert (config.arch.vocab_size_cond, config.arch.block_size_cond) == GRAMMARS[dataset.name]
        assert dataset[0]["cond"].shape == (config.arch.block_size_cond,)
        assert config.dataset.vocab_size_txt == config.arch.vocab_size_cond
