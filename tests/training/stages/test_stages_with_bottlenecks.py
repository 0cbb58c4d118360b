"""Both stages with every kind of bottleneck: decoding sees the code vectors that training sees, and a run of each."""

import pytest
import torch

from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.decoding import Decoder
from rqvae import RQVAE, RQVAEConfig
from tests.training.tiny_runs import (
    STAGE1,
    STAGE2,
    changed,
    only_run,
    pictured,
    session,
    stage1,
    stage2,
    train,
    validated,
    write_config,
)

BOTTLENECKS = {
    "rq": {},
    "vq": {"n_embed": 16, "bottleneck": {"codebook_dim": 5, "kmeans_init": True}},
    "fsq": {"n_embed": None, "bottleneck": {"levels": [4, 4, 3]}},
    "residual_vq": {"n_embed": [16, 12, 8], "bottleneck": {"quantize_dropout": True}},
    "residual_simvq": {"n_embed": 16, "bottleneck": {"groups": 1, "quantize_dropout": True}},
    "residual_fsq": {"n_embed": None, "bottleneck": {"levels": [4, 4], "quantize_dropout": True}},
}


def hparams(name):
    settings = {"shared_codebook": False, **BOTTLENECKS[name]} if name != "rq" else {}
    return {f"arch.hparams.{key}": value for key, value in {"bottleneck_type": name, **settings}.items()}


def tokenizer_of(name):
    torch.manual_seed(0)
    return RQVAE(RQVAEConfig.from_mapping(changed(STAGE1, hparams(name))["arch"])).eval()


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_decoding_embeds_codes_as_training_does(name):
    """The logits of a step-by-step decoder equal those of one forward over the same codes."""
    tokenizer = tokenizer_of(name)
    arch = {**STAGE2["arch"], "vocab_size": list(tokenizer.quantizer.num_codes)}
    model = RQTransformer(RQTransformerConfig.from_mapping(arch)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    codes_BHWD = tokenizer.get_codes(torch.rand(2, 3, 8, 8) * 2 - 1)
    cond_B = torch.tensor([1, 3])
    expected = model(codes_BHWD, tokenizer, cond_B).logits.flatten(1, -3)
    with torch.no_grad(), model.decoding_mode():
        decoder = Decoder(model, tokenizer, cond_B[:, None], codes_BHWD.flatten(1, 2)[:, :0], torch.float32)
        for position, codes_BD in enumerate(codes_BHWD.flatten(1, 2).unbind(1)):
            for depth, code_B in enumerate(codes_BD.unbind(1)):
                close = torch.testing.assert_close
                close(decoder.logits(), expected[:, position, depth], atol=1e-4, rtol=1e-4)
                decoder.push(code_B)


@pytest.mark.parametrize("name", [name for name in BOTTLENECKS if name != "rq"])
def test_a_run_of_both_stages(name, tmp_path):
    config = stage1({**hparams(name), "experiment.max_steps": 2})
    run = train("stage1", "-m", write_config(tmp_path / "one.yaml", config), "-r", tmp_path / "one")
    assert validated(run)["recon_mse"] < 10
    code_dim = run.stage.model.codebook(0).shape[1]
    second = stage2({"arch.input_embed_dim": code_dim, "experiment.max_steps": 2})
    flags = ["-m", write_config(tmp_path / "two.yaml", second), "-v", only_run(tmp_path / "one")]
    run = train("stage2", *flags, "-r", tmp_path / "two")
    assert 0 < validated(run)["nll"] < 10
    assert pictured(run)["samples"].shape[0] == 3


def test_code_vectors_that_depend_on_codes_need_hard_targets_and_own_embeddings(tmp_path):
    settings = {"bottleneck_type": "implicit_residual_vq", "bottleneck": {"hidden": 6}, "shared_codebook": False}
    config = stage1({f"arch.hparams.{key}": value for key, value in settings.items()} | {"experiment.max_steps": 1})
    train("stage1", "-m", write_config(tmp_path / "one.yaml", config), "-r", tmp_path / "one")

    def flags(changes):
        file = write_config(tmp_path / "two.yaml", stage2({"experiment.max_steps": 1, **changes}))
        return ["-m", file, "-v", only_run(tmp_path / "one"), "-r", tmp_path / "two"]

    with pytest.raises(ValueError, match="choose cross_entropy"):
        session("stage2", *flags({}))
    hard = {"loss.type": "cross_entropy"}
    with pytest.raises(ValueError, match="input_emb_vqvae and arch.head_emb_vqvae to false"):
        session("stage2", *flags(hard))
    own = {"arch.input_emb_vqvae": False, "arch.head_emb_vqvae": False, "arch.shared_tok_emb": False}
    train("stage2", *flags(hard | own))
