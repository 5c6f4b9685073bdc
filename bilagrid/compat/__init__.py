"""The calls that others' users make, over bilagrid's operators."""

from bilagrid.compat._places import pixel_grid

__all__ = ["pixel_grid"]
