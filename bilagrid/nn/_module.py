"""What the modules share."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from bilagrid.lattice import Lattice

# The kinds of lattice that follow from the sizes of grid and image alone.
_KINDS = {
    "cell_centered": Lattice.cell_centered,
    "half_pixel": Lattice.half_pixel,
    "corner_aligned": Lattice.corner_aligned,
}


def checked_size(size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Nodes (D, Gh, Gw), or an error that says what is wrong with them."""
    return Lattice.cell_centered(size, (1, 1)).size


class Module(nn.Module):
    """A module whose options are the attributes that it names."""

    options: ClassVar[tuple[str, ...]] = ()

    def given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.given().items())


class OnLattice(Module):
    """A module whose pixels land by one kind of lattice, whatever the image's size, or by a lattice of its own."""

    options: ClassVar[tuple[str, ...]] = ("lattice",)

    def __init__(self, lattice: str | Lattice) -> None:
        super().__init__()
        if not (isinstance(lattice, Lattice) or (isinstance(lattice, str) and lattice in _KINDS)):
            raise ValueError(f"lattice must be one of {', '.join(_KINDS)}, or a bilagrid.Lattice, got {lattice!r}")
        self.lattice = lattice

    def lattice_for(self, grid: Tensor | tuple[int, int, int], pixels: Tensor) -> Lattice | None:
        """The lattice of a grid, or of one of that size, and pixels ``(..., H, W)``; None, the default, where the operator is to say what is wrong with them."""
        if isinstance(self.lattice, Lattice):
            return self.lattice
        size = grid.shape[2:] if isinstance(grid, Tensor) else grid
        if not isinstance(pixels, Tensor) or pixels.ndim < 2 or not isinstance(size, tuple) or len(size) != 3:
            return None
        depth, rows, columns = size
        height, width = pixels.shape[-2:]
        # One by one: the least of symbolic sizes would fix their order in a graph.
        if any(extent < 1 for extent in (depth, rows, columns, height, width)):
            return None
        return _KINDS[self.lattice]((depth, rows, columns), (height, width))
