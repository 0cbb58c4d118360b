"""The world of fake CUDA tensors itself: every detector sees what it is there for, and the graph walk is torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.gpu.fake_autograd import backward_without_driver
from tests.gpu.fake_cuda import CUDA, HostSync, MixedDevices, fake_cuda, no_host_sync

WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "branch": lambda x: 1 if x.sum() > 0 else 2,
    "tolist": lambda x: x[0].tolist(),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "boolean index": lambda x: x[x > 0],
    "boolean index written": lambda x: x.index_put_((x > 0,), x[0, :1]),
    "equal": lambda x: torch.equal(x, x + 1),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=x.device), 0),
    "multinomial": lambda x: torch.multinomial(x, 1),
    "inverse": lambda x: torch.linalg.inv(x),
    "to the host": lambda x: x.cpu(),
    "to the host, not blocking": lambda x: x.to("cpu", non_blocking=True),
    "written on the host": lambda x: torch.zeros(3, 3).copy_(x),
    "from the host": lambda x: x + torch.ones(3).to(x.device),
    "made on the host": lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "synchronize": lambda x: torch.cuda.synchronize(),
}
MIXED: dict[str, Callable[[Tensor], object]] = {
    "sum": lambda x: x + torch.ones(3),
    "single number": lambda x: x + torch.tensor(2.0),
    "index": lambda x: x[torch.tensor([0, 1])],
    "written": lambda x: x.index_copy_(0, torch.tensor([0]), x[:1]),
}
FREE: dict[str, Callable[[Tensor], object]] = {
    "Python numbers": lambda x: (x + 1) * 2.0 > 3,
    "made on the device": lambda x: x + torch.ones(3, device=x.device) + x.new_zeros(3),
    "from the host, not blocking": lambda x: x + torch.ones(3).to(x.device, non_blocking=True),
    "chosen by a mask": lambda x: torch.where(x > 0, x, 0.0).masked_fill(x > 1, 2.0),
    "indexed by numbers": lambda x: x[torch.zeros(2, dtype=torch.long, device=x.device)],
    "repeated by a known number": lambda x: x.repeat_interleave(2, 0),
    "a number written": lambda x: x[..., 1:].__setitem__(..., 2.0),
    "drawn": lambda x: torch.randn_like(x) + torch.rand(3, device=x.device),
    "number of the host": lambda x: torch.arange(3).sum().item(),
}


@pytest.mark.parametrize("case", WAITING)
def test_waiting_is_seen(case):
    with fake_cuda():
        x = torch.ones(3, 3, device=CUDA)
        with pytest.raises(HostSync, match=r"tests/gpu/test_fake_cuda.py:\d+ in "), no_host_sync():
            WAITING[case](x)


@pytest.mark.parametrize("case", MIXED)
def test_mixed_devices_are_seen(case):
    with fake_cuda():
        x = torch.ones(3, 3, device=CUDA)
        with pytest.raises(MixedDevices, match=r"cuda:0.*tests/gpu/test_fake_cuda.py:\d+ in "), no_host_sync():
            MIXED[case](x)


@pytest.mark.parametrize("case", FREE)
def test_what_does_not_wait_passes(case):
    with fake_cuda():
        x = torch.ones(3, 3, device=CUDA)
        with no_host_sync():
            FREE[case](x)


def test_a_recording_copies_nothing_at_all():
    with fake_cuda():
        x = torch.ones(3, device=CUDA)
        with no_host_sync() as watch:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()
            x.add_(1)
            with pytest.raises(HostSync, match="copies from cpu to cuda"):
                torch.ones(3).to(CUDA, non_blocking=True)
            graph.capture_end()
            torch.ones(3).to(CUDA, non_blocking=True)
        assert watch.recordings == 1


def test_what_is_legal_is_named_and_must_be_needed():
    place = "tests/gpu/test_fake_cuda.py:test_what_is_legal_is_named_and_must_be_needed"
    with fake_cuda():
        x = torch.ones(3, device=CUDA)
        with no_host_sync({place: "a test"}):
            assert x.sum().item() == 0
        with pytest.raises(AssertionError, match="nothing waits any more"), no_host_sync({place: "a test"}):
            x.add_(1)


class Forgetful(nn.Module):
    """A tensor that is neither a parameter nor a buffer stays where it was."""

    def __init__(self):
        super().__init__()
        self.scale = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_a_module_that_leaves_a_tensor_behind_is_caught():
    with fake_cuda():
        module, x = Forgetful().to(CUDA), torch.ones(2, 4, device=CUDA)
        with pytest.raises(MixedDevices, match="in forward"), no_host_sync():
            module(x)


class Doubled(torch.autograd.Function):
    """Two outputs, of which one is not used."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2, x * 3

    @staticmethod
    def backward(ctx, grad, unused):
        (x,) = ctx.saved_tensors
        return grad * x + unused


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    norms = nn.GroupNorm(2, 4), nn.ReLU(), nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), *norms, nn.Flatten(), nn.Linear(144, 5), nn.LayerNorm(5))


def _gradients(image: Tensor) -> list[Tensor]:
    """Broadcasting, a hook, a custom function, recomputation, another number type, two passes through one graph."""
    net = _net()
    y = net(image)
    again = checkpoint(lambda t: (t * t).sin(), y, use_reentrant=False)
    doubled = Doubled.apply(y)[0]
    loss = (doubled + 1).sum() * y.mean() + again.sum() + (y + net[5].bias * 2).pow(2).mean(0)[None].expand(3, 5).sum()
    loss = loss + (image.mean() * y.bfloat16()).sum()
    y.register_hook(lambda grad: grad * 2)
    first = torch.autograd.grad(loss, [net[0].weight, net[5].bias], retain_graph=True)
    loss.backward()
    return [*first, *(parameter.grad for parameter in net.parameters())]


def test_the_graph_walk_gives_the_gradients_of_torch():
    image = torch.randn(2, 3, 8, 8)
    expected = _gradients(image)
    with backward_without_driver():
        torch.testing.assert_close(_gradients(image), expected)


def test_a_gradient_on_another_device_is_an_error():
    class Astray(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return torch.ones(3)

    with fake_cuda():
        x = torch.ones(3, device=CUDA, requires_grad=True)
        with pytest.raises(AssertionError, match="gradient on cpu, not cuda"):
            Astray.apply(x).sum().backward()
