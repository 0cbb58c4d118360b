"""Scores that mean one thing: protocol, features, streaming statistics, FID, IS, recognition accuracy.

The package sees tensors and iterables of tensors, never a model of ours or a data set. Import the module you need:
`evaluation.protocol`, `evaluation.statistics`, `evaluation.metrics.frechet`, `evaluation.metrics.inception_score`,
`evaluation.networks.feature_networks` (`inception`, `classifier`), `evaluation.scores`.
"""
