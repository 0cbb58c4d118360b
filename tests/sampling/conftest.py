"""Samples are compared bit for bit, which is promised on CPUs: a GPU is not looked at."""

from tests.training.conftest import _no_gpu as _no_gpu
