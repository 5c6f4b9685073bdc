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
    """``size`` if it is nodes (D, Gh, Gw); else an error says what is wrong with it."""
    return Lattice.cell_centered(size, (1, 1)).size


def size_of(grid: Any) -> tuple[int, ...]:
    """The nodes of a grid; none of what is no tensor, which the operator will refuse."""
    return grid.shape[2:] if isinstance(grid, Tensor) else ()


class Module(nn.Module):
    """A module whose options are attributes of the names in ``options``."""

    options: ClassVar[tuple[str, ...]] = ()

    def given(self) -> dict[str, Any]:
        """The options by name, as the module's function takes them."""
        return {name: getattr(self, name) for name in self.options}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.given().items())


class OnLattice(Module):
    """A module with a kind of lattice, which fits every size of image, or with one `Lattice`."""

    options: ClassVar[tuple[str, ...]] = ("lattice",)

    def __init__(self, lattice: str | Lattice) -> None:
        super().__init__()
        if not (isinstance(lattice, Lattice) or (isinstance(lattice, str) and lattice in _KINDS)):
            raise ValueError(f"lattice must be one of {', '.join(_KINDS)}, or a bilagrid.Lattice, got {lattice!r}")
        self.lattice = lattice

    def lattice_for(self, size: tuple[int, ...], pixels: Tensor) -> Lattice | None:
        """The lattice for a grid of ``size`` and pixels ``(..., H, W)``; None where these are wrong, which the operator will say."""
        if isinstance(self.lattice, Lattice):
            return self.lattice
        if not isinstance(pixels, Tensor) or pixels.ndim < 2 or len(size) != 3:
            return None
        depth, rows, columns = size
        height, width = pixels.shape[-2:]
        # Each by itself: the minimum of symbolic sizes would fix in a graph which is the smallest.
        if any(extent < 1 for extent in (depth, rows, columns, height, width)):
            return None
        return _KINDS[self.lattice]((depth, rows, columns), (height, width))
