"""The quantizers, one a file."""
