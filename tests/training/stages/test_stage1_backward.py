"""The backward passes of a stage-1 step: each network is run backward once, and so all of them may be compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from tests.random_vgg16 import write_random_vgg16
from tests.training.tiny_runs import GAN, session, stage1, write_config
from training.stages.stage1 import Stage1

LARGE_ENOUGH_FOR_LPIPS = {
    "dataset.resolution": 16,
    "arch.ddconfig.resolution": 16,
    "arch.ddconfig.ch_mult": [1, 1, 1],
    "gan.loss.perceptual_weight": 1.0,
}


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory) -> str:
    return str(write_random_vgg16(tmp_path_factory.mktemp("vgg16") / "random_vgg16.pth"))


@pytest.fixture
def build(tmp_path) -> Callable[..., Stage1]:
    """`build({"key": value})` -> the stage."""

    def make(changes=None):
        file = write_config(tmp_path / "tiny.yaml", stage1({"gan": GAN} | (changes or {})))
        run = session("stage1", "-m", file, "-r", tmp_path / "runs")
        run.close()
        return run.stage

    return make


def perceptual(vgg16: str) -> dict[str, object]:
    return LARGE_ENOUGH_FOR_LPIPS | {"gan.loss.perceptual_backbone": vgg16}


def batch(stage: Stage1) -> dict[str, torch.Tensor]:
    side = stage.config.dataset.resolution
    return {"image": torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1}


def gradients_of_a_step(stage: Stage1) -> dict[str, torch.Tensor]:
    """What both optimizers are given in one step, and the numbers that are logged."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name, module, update, *args, **options):
        seen.update({f"{name}.{key}": value.grad.clone() for key, value in module.named_parameters()})
        return update(*args, **options)

    assert stage.adversary is not None
    for name, module, owner in (
        ("model", stage.model, stage.update),
        ("discriminator", stage.adversary.discriminator, stage.adversary.update),
    ):
        owner.step = partial(keep, name, module, owner.step)
    return stage.train_step([batch(stage)], 0) | seen


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch 2.11 says so of the hooks that count
def test_lpips_and_the_discriminator_are_run_backward_once(build, vgg16):
    stage = build(perceptual(vgg16))
    passes = {"lpips": 0, "discriminator": 0}

    def count(name, *_):
        passes[name] += 1

    stage.image_terms[0].distance.register_full_backward_pre_hook(partial(count, "lpips"))
    stage.adversary.discriminator.register_full_backward_pre_hook(partial(count, "discriminator"))
    stage.train_step([batch(stage)], 0)
    # the discriminator's own step looks at reconstructions and at images
    assert passes == {"lpips": 1, "discriminator": 1 + 2}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal to float tolerance, relative to the largest entry of a tensor."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = max(float(value.abs().amax()), 1e-3)
        torch.testing.assert_close(
            ours[name], value, rtol=0.0, atol=1e-4 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def eager_and_compiled(build, changes, backend, monkeypatch) -> list[dict[str, torch.Tensor]]:
    results = []
    compile_with_backend = partial(torch.compile, backend=backend)
    for enabled in (False, True):
        monkeypatch.setattr(torch, "compile", compile_with_backend)
        torch.manual_seed(0)
        results.append(gradients_of_a_step(build(changes | {"experiment.compile": enabled})))
    return results


@pytest.mark.slow
def test_no_compiled_graph_is_run_backward_twice(build, monkeypatch):
    """Compiled graphs give their saved tensors away at their first backward pass."""
    calls = {"forward": 0, "backward": 0}

    def counted(kind):
        def compiler(graph, _):
            def run(*args):
                calls[kind] += 1
                return graph(*args)

            return make_boxed_func(run)

        return compiler

    backend = aot_autograd(fw_compiler=counted("forward"), bw_compiler=counted("backward"))
    assert_same(*reversed(eager_and_compiled(build, {}, backend, monkeypatch)))
    # encoder, decoder, and the discriminator for the generator, for reconstructions and for images
    assert calls["forward"] == calls["backward"] >= 5


def test_every_network_is_compiled_for_its_own_sizes(build, vgg16, monkeypatch):
    """Sizes that two networks of one kind do not share become unknown numbers where compiled code is kept for both."""
    sizes = []

    def backend(graph, inputs):
        sizes.append([size for given in inputs if isinstance(given, torch.Tensor) for size in given.shape])
        sizes[-1] += [given for given in inputs if isinstance(given, torch.SymInt)]
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    stage = build(perceptual(vgg16) | {"experiment.compile": True})
    stage.train_step([batch(stage)], 0)
    assert len(sizes) >= 4  # encoder, decoder, LPIPS, discriminator
    assert not any(isinstance(size, torch.SymInt) for graph in sizes for size in graph)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # C++ for every kernel of every network
@pytest.mark.parametrize("with_lpips", [False, True])
def test_networks_compiled_for_speed_give_the_gradients_of_eager_ones(with_lpips, build, vgg16, monkeypatch):
    changes = perceptual(vgg16) if with_lpips else {}
    assert_same(*reversed(eager_and_compiled(build, changes, "inductor", monkeypatch)))
