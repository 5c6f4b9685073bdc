"""The operators for CPU tensors: Numba loops, one file an op, under the names that `bilagrid.gpu` uses."""
