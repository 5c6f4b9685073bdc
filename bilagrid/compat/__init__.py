"""The interfaces of other libraries, over bilagrid's operators: gsplat, nerfstudio, fused-bilagrid, HDRNet and kornia."""

from bilagrid.compat._places import pixel_grid

__all__ = ["pixel_grid"]
