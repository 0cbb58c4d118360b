"""The calls of other libraries: a program changes its import line, and the arithmetic is that of the core.

Some of these modules are thin: they hold a piece of the core and give it the other library's signature, shapes and
`state_dict` keys. `FSQ` and `ResidualFSQ` hold `ScalarGrid`, `FSP` holds `ScalarBins`, `LatentQuantize` its values
beside `MixedRadix`; `LFQ`, `ResidualLFQ` and `BinaryMapper` call the arithmetic of bits, `SimVQ` and `ResidualSimVQ`
the mapped codebook; vqtorch's pools are the core's classes with other defaults, its norms, distances and switches a few
lines each.

Others are a second implementation beside the core's quantizers: `VectorQuantize` with its `_codebook`, what is built
from it (`ResidualVQ`, `GroupedResidualVQ`, `HierarchicalVQ`, `RandomProjectionQuantizer`), and vqtorch's `VectorQuant`,
`GroupVectorQuant` and `ResidualVectorQuant`. They cannot be calls of `VectorQuantizer`, because its contract forbids
what programs written for those libraries rely on: the codebook changes inside the forward, at every level; scores are
distances and not their squares; a masked position has the code -1; the loss has a shape that depends on the call; and
the codebook's tensors have the names and shapes that checkpoints of the other library load into. They share every step
with the core: search, draws, averages, k-means, restarts, gradient estimators, loss terms. The chains of levels stand
here once more as well, since dropout is drawn and shown (index -1) as those libraries do.

docs/migrating.md has the keywords one by one, and what differs on purpose.
"""
