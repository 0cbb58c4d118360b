"""Every quantizer under torch.compile in eval: one graph (fullgraph), the same codes and vectors as without."""

import pytest
import torch

from rqstack.quantizers import ResidualVectorOptions, VectorLosses, VectorOptions, VectorQuantizer
from rqstack.quantizers.arithmetic import nearest
from rqstack.quantizers.arithmetic.nearest import nearest_codes, sampled_codes, soft_code_probs
from rqstack.quantizers.arithmetic.precision import full_precision_matmul
from rqstack.quantizers.methods.residual_vector import ResidualVectorQuantizer
from rqvae.bottleneck import BOTTLENECKS, build_quantizer
from rqvae.config import QuantizerHParams
from tests.rqstack.quantizers.quantizer_methods import made

LEVELS = {"levels": [4, 4]}
OPTIONS = dict.fromkeys(("fsq", "fsp", "latent", "residual_fsq"), LEVELS)
OPTIONS |= {"random_projection": {"codebook_dim": 4}, "hierarchical": {"scales": [1, 2]}}
CODE_SHAPES = {"hierarchical": [1, 1, 5]}  # one stack of codes for a map
VECTOR_SETTINGS = {
    "cosine": {"distance": "cosine"},
    "heads": {"heads": 2},
    "separate heads": {"heads": 2, "separate_codebooks": True},
    "projected": {"codebook_dim": 4},
    "learned": {"codebook": "learned"},
    "rotation": {"estimator": "rotation"},
    "directional": {"estimator": "directional"},
    "gumbel": {"estimator": "gumbel", "sample_temp": 1.0},
    "losses": {"losses": VectorLosses(cross_entropy=1.0, diversity=0.1)},
    "k-means": {"kmeans_init": True},
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_traces(quantizer, x, mask=None):
    quantizer.eval()
    expected = quantizer(x, mask)
    found = torch.compile(quantizer, fullgraph=True, backend="eager")(x, mask)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.quantized, expected.quantized)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_every_bottleneck_is_one_graph_in_eval(name):
    config = QuantizerHParams(
        bottleneck_type=name, embed_dim=8, n_embed=16, latent_shape=[2, 2, 8],
        code_shape=CODE_SHAPES.get(name, [2, 2, 2]), bottleneck=OPTIONS.get(name, {}),
    )  # fmt: skip
    with torch.no_grad():
        mask = None if name in CODE_SHAPES else torch.rand(3, 2, 2) < 0.7
        assert_traces(build_quantizer(config), torch.randn(3, 2, 2, 8), mask)


@pytest.mark.parametrize("settings", VECTOR_SETTINGS.values(), ids=list(VECTOR_SETTINGS))
def test_every_setting_of_the_vector_quantizer_is_one_graph_in_eval(settings):
    assert_traces(made(VectorQuantizer, VectorOptions, 8, 16, **settings), torch.randn(2, 5, 8))


@pytest.mark.parametrize("settings", [{}, {"beam_width": 3}, {"shared": True}], ids=str)
def test_residual_vectors_are_one_graph_in_eval(settings):
    assert_traces(made(ResidualVectorQuantizer, ResidualVectorOptions, 8, 16, 3, **settings), torch.randn(2, 5, 8))


def test_a_search_is_one_node_whatever_its_number_of_tiles(monkeypatch):
    graphs = []

    def keep(graph, inputs):
        graphs.append([node for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    monkeypatch.setattr(nearest, "CPU_CHUNK_BYTES", 4 * 16 * 40)
    x, weight = torch.randn(1000, 4), torch.randn(40, 4)
    codes = torch.compile(nearest_codes, fullgraph=True, backend=keep)(x, weight)
    assert torch.equal(codes, nearest_codes(x, weight))
    assert len(graphs) == 1
    assert sum("nearest_codes" in str(node.target) for node in graphs[0]) == 1
    assert len(graphs[0]) < 10


def test_compiled_searches_stay_fp32_under_autocast():
    """1 / 512 apart at 1: bf16 products could not tell the code vectors."""
    weight = torch.tensor([[1.0 + step / 512] for step in range(8)])
    search = torch.compile(nearest_codes, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert search(weight, weight).tolist() == list(range(8))


def test_compiled_draws_follow_the_seed():
    x, weight = torch.randn(50, 3), torch.randn(9, 3)
    draw = torch.compile(lambda: sampled_codes(x, weight, 1.0), fullgraph=True, backend="eager")
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(draw())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_precision_switch_breaks_no_graph_on_a_gpu(precision):
    """The switch of torch exists without a GPU; compiled code leaves it alone."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision

    def product(x):
        with full_precision_matmul(torch.device("cuda")):
            return x @ x.T

    try:
        matmul.fp32_precision = precision
        x = torch.randn(4, 4)
        torch.testing.assert_close(torch.compile(product, fullgraph=True, backend="eager")(x), x @ x.T)
        assert matmul.fp32_precision == precision
    finally:
        matmul.fp32_precision = before


def test_soft_codes_are_one_graph():
    x, weight = torch.randn(6, 3), torch.randn(5, 3)
    compiled = torch.compile(soft_code_probs, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, weight, 0.5), soft_code_probs(x, weight, 0.5))
