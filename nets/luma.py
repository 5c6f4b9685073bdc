"""BT.601's weights of red, green and blue, by which `bilagrid` makes a guide of an image in colour."""

LUMA = (0.299, 0.587, 0.114)
