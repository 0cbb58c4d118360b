"""The call signatures of other libraries, thin wrappers over the quantizers of this one: a program changes its import line."""
