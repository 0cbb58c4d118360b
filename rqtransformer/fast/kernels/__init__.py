"""Steps of decoding as single Triton kernels, each beside a plain form that judges it.

Import a module of this room only where `rqstack.triton_kernels.use_kernel` says so: each needs Triton. Each has a
`serves` that names all it knows; what it does not know is left to the plain form. The results are tested in Triton's
interpreter, and every kernel is compiled for sm_80 and sm_90 in the tests; none was run on a GPU yet, so neither
results nor speed are verified there.
"""
