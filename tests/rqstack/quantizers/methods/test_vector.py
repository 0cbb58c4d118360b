"""The vector quantizer's codebook over time: k-means start, restarts, sampling, freezing, pending vectors, memory."""

import pytest
import torch

from rqstack.quantizers import AffineRule, EMACodebook, RestartRule, VectorLosses, VectorOptions, VectorQuantizer
from rqstack.quantizers.codebooks.kmeans import draw_vectors, kmeans
from rqstack.quantizers.codebooks.restart_draw import CodedVectors

BLOBS = torch.tensor([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0], [0.0, -5.0]])
PLAIN = VectorOptions(kmeans_init=False, restart_dead=False)


def blobs(count=200):
    return BLOBS.repeat_interleave(count // 4, 0) + 0.1 * torch.randn(count, 2)


def coded(x, codes):
    return CodedVectors(x, torch.as_tensor(codes), torch.ones(len(x), dtype=torch.bool))


def test_kmeans_never_increases_the_error_and_ends_in_means():
    x = torch.randn(300, 4)
    errors = []
    for iterations in range(8):
        means, counts = kmeans(x, 10, iterations=iterations)
        codes = torch.cdist(x, means).argmin(1)
        errors.append((x - means[codes]).square().sum().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]
    means, counts = kmeans(x, 10, iterations=100)
    codes = torch.cdist(x, means).argmin(1)
    assert counts.tolist() == codes.bincount(minlength=10).tolist()
    for code in codes.unique():
        torch.testing.assert_close(means[code], x[codes == code].mean(0))


def test_kmeans_ignores_masked_and_non_finite_rows():
    x = torch.randn(60, 3)
    dirty = torch.cat([x[:30], torch.full((2, 3), float("nan")), torch.full((2, 3), 50.0), x[30:]])
    valid = torch.ones(64, dtype=torch.bool)
    valid[32:34] = False
    for mine, clean in zip(kmeans(dirty, 5, valid_N=valid), kmeans(x, 5)):
        torch.testing.assert_close(mine, clean)
    with pytest.raises(ValueError, match="none of which is finite"):
        kmeans(torch.full((4, 2), float("inf")), 2)


def test_cosine_kmeans_finds_directions():
    x = blobs() * torch.rand(200, 1).add(0.5)
    means, _ = kmeans(x, 40, cosine=True)
    torch.testing.assert_close(means.norm(dim=1), torch.ones(40))


def test_too_few_vectors_repeat_with_a_little_noise():
    x = torch.randn(3, 6)
    drawn = draw_vectors(x, 10)
    assert len(drawn.unique(dim=0)) == 10
    distance = torch.cdist(drawn, x).min(1).values
    assert (distance == 0).sum() == 3
    assert (distance < 0.05 * x.norm(dim=1).max()).all()


@pytest.mark.parametrize("codebook", ["ema", "learned"])
def test_kmeans_start_happens_once_in_the_first_training_forward(codebook):
    quantizer = VectorQuantizer(2, 16, VectorOptions(kmeans_init=True, codebook=codebook))
    before = quantizer.codebook(0).clone()
    quantizer.eval()(blobs())
    assert torch.equal(quantizer.codebook(0), before)
    out = quantizer.train()(blobs())
    assert out.terms["commitment"] < 0.1
    assert quantizer.initialized
    started = quantizer.codebook(0).clone()
    quantizer(10 * blobs())
    assert torch.equal(quantizer.codebook(0), started)
    other = VectorQuantizer(2, 16, VectorOptions(kmeans_init=True, codebook=codebook))
    other.load_state_dict(quantizer.state_dict())
    other(10 * blobs())
    assert torch.equal(other.codebook(0), started), "a loaded codebook has been started"


@pytest.mark.parametrize("separate", [False, True])
def test_heads_start_and_update_from_their_own_vectors(separate):
    quantizer = VectorQuantizer(4, 8, PLAIN, heads=2, separate_codebooks=separate)
    z = torch.cat([blobs(), 20 + blobs()], 1)
    quantizer.initialize_codebook(z)
    assert len(quantizer.codebooks) == 1 + separate
    if separate:
        assert quantizer.codebook(0).max() < 10 < quantizer.codebook(1).min()
    quantizer(z)
    quantizer.update_codebook()
    assert quantizer.codebooks[0].cluster_size_ema.sum() == pytest.approx(200 if separate else 400, rel=0.05)


def test_data_start_takes_vectors_as_they_are():
    quantizer, x = VectorQuantizer(2, 16, PLAIN), blobs()
    quantizer.initialize_codebook(x, method="data")
    assert (torch.cdist(quantizer.codebook(0), x).min(1).values == 0).all()
    with pytest.raises(ValueError, match="not one of kmeans, data"):
        quantizer.initialize_codebook(x, method="zeros")


def test_restart_relative_to_uniform_use():
    """Four entries, mean size 1: those below half of it are replaced and start with the mean size."""
    book = EMACodebook(4, 2, decay=0.5, restart=RestartRule(0.5, relative=True))
    book.cluster_size_ema.copy_(torch.tensor([4.0, 1.2, 0.6, 0.0]))
    before = book.weight.clone()
    book.embed_ema.copy_(before * book.cluster_size_ema[:, None])
    x = 100 + torch.randn(4, 2)
    book.update([coded(x, [0, 0, 0, 0])])  # sizes before the restart: 4, 0.6, 0.3, 0: mean 1.225
    assert book.cluster_size_ema[0] == 4
    torch.testing.assert_close(book.cluster_size_ema[1:], torch.full((3,), 1.225))
    assert (torch.cdist(book.weight[1:], x).min(1).values < 0.01).all()


def test_absolute_restart_starts_with_the_threshold():
    book = EMACodebook(3, 2, decay=0.5, restart=RestartRule(2.0))
    x = torch.randn(8, 2)
    book.update([coded(x, [0] * 8)])
    assert book.cluster_size_ema.tolist() == [4.5, 2.0, 2.0]
    assert (torch.cdist(book.weight[1:], x).min(1).values < 1e-3).all()


def test_grace_period():
    book = EMACodebook(2, 2, decay=0.1, restart=RestartRule(grace=3))
    changes = []
    for _ in range(9):
        before = book.weight[1].clone()
        book.update([coded(torch.randn(6, 2), [0] * 6)])
        changes.append(not torch.equal(before, book.weight[1]))
    assert changes == [False, False, False, True, False, False, True, False, False]


def test_sampling_follows_the_temperature_in_training_only():
    quantizer = VectorQuantizer(1, 2, VectorOptions(sample_temp=2.0, kmeans_init=False))
    quantizer.codebooks[0].assign(torch.tensor([[0.0], [1.0]]), torch.ones(2))
    z = torch.full((20000, 1), 0.2)
    share = quantizer(z).codes.float().mean().item()
    assert share == pytest.approx(torch.tensor((0.04 - 0.64) / 2.0).sigmoid().item(), abs=0.02)
    assert not quantizer.eval()(z).codes.any()


def test_updates_wait_for_the_call_and_can_be_discarded():
    quantizer = VectorQuantizer(2, 4, PLAIN)
    before = quantizer.codebook(0).clone()
    quantizer(blobs())
    assert torch.equal(quantizer.codebook(0), before)
    quantizer.discard_codebook_update()
    quantizer.update_codebook()
    assert torch.equal(quantizer.codebook(0), before)
    quantizer(blobs())
    quantizer.update_codebook()
    assert not torch.equal(quantizer.codebook(0), before)


def test_unfrozen_learned_codebooks_learn_again():
    quantizer = VectorQuantizer(2, 4, VectorOptions(codebook="learned"))
    quantizer.freeze_codebook()
    assert not quantizer(blobs()).loss.requires_grad
    quantizer.freeze_codebook(False)
    quantizer(blobs()).loss.backward()
    assert quantizer.codebooks[0].rows.grad.any()


def test_a_model_cast_to_half_computes_in_full_precision():
    quantizer = VectorQuantizer(8, 16, VectorOptions(codebook_dim=3, codebook="learned")).half()
    out = quantizer(torch.randn(5, 8).half())
    assert out.quantized.dtype == torch.float16
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.quantized, quantizer.decode(out.codes).half())


@pytest.mark.parametrize("codebook", ["ema", "both"])
@pytest.mark.parametrize("losses", [VectorLosses(), VectorLosses(cross_entropy=1.0, diversity=1.0)])
def test_no_tensor_grows_with_vectors_times_codes(losses, codebook):
    """The largest tensor that any operation of a training step makes stays within the byte budget of a search."""
    options = {"restart": RestartRule(unused_for=2), "affine": AffineRule("running")} if codebook == "both" else {}
    quantizer = VectorQuantizer(
        4, 4096, VectorOptions(codebook=codebook, losses=losses, estimator="gumbel", sample_temp=1.0, **options)
    )
    z = torch.randn(2048, 4, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            tensors = [value for value in torch.utils._pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
            largest = max([largest, *(value.numel() * value.element_size() for value in tensors)])
            return result

    with Watch():
        out = quantizer(z)
        (out.quantized.sum() + out.loss).backward()
        quantizer.update_codebook()
        quantizer.top_codes(z, 3)
        quantizer.update_from_codes(z, out.codes)
    assert largest <= 8 * 2**20, "N x K floats would be 32 MiB"
