"""Networks built from the operators of `bilagrid`."""
