"""WebDataset shards: reading, writing, manifests, and the latents kept in them."""
