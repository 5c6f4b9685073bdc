"""The operators in Triton, for CUDA and ROCm tensors: one file an op, as in `bilagrid.ops`."""
