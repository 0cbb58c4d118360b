"""Random weights of the FID Inception network, in the format of the published file."""

from pathlib import Path

import torch

from evaluation.networks.inception import fid_inception_network


def write_random_weights(path: Path) -> Path:
    """Batch norms get statistics that are not the defaults, which also keeps features of different images apart."""
    torch.manual_seed(0)
    network = fid_inception_network()
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            # Random convolutions shrink their input.
            buffer.uniform_(0.05, 0.2)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    torch.save(network.state_dict(), path)
    return path
