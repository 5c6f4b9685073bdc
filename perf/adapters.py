"""The peers: other implementations of our operators, each adapted to our tensors, so that `perf.peers` can check and time them beside ours.

Every peer gets the tensors of a `perf.cases.Problem` and gives ``(N, C, H, W)``. What it needs only once, such as the places of pixels, is made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

import torch
from torch import Tensor

from perf import timing
from perf.cases import BOTH, CELL_CENTERED, RESOLUTIONS, SIGMA_COLOR, Case, GridSpec, Problem, Tensors

Run = Callable[[Tensors], Tensor]


@dataclass(frozen=True)
class Goal:
    """An aim: that a peer takes at least that many ``times`` as long as ours, on a device, in a direction, on images of a size."""

    device: str
    direction: str
    image: tuple[int, int]
    times: float


@dataclass(frozen=True)
class Peer:
    """Another implementation of an operator.

    Attributes:
        module: what is imported; ``remedy`` says how to get it.
        prepare: makes of a case and its problem this peer's ``run`` of the problem.
        kind: the kind of lattice that it works on.
        exact: whether it computes what ours does, rather than approximating the same filter.
        memory: the bytes that it takes for a case beyond what ours does.
        note: what should be known of its times.
        goals: what we aim at.
    """

    name: str
    operator: str
    module: str
    about: str
    remedy: str
    prepare: Callable[[Case, Problem], Run]
    kind: str = CELL_CENTERED
    devices: tuple[str, ...] = ("cpu", "cuda")
    gradients: bool = True
    exact: bool = True
    memory: Callable[[Case], int] = lambda case: 0
    note: Callable[[], str] = lambda: ""
    goals: tuple[Goal, ...] = ()

    def goal(self, device: str, direction: str, image: tuple[int, int]) -> float | None:
        """How many times as long as ours it should take there, if there is a goal."""
        here = (goal.times for goal in self.goals if (goal.device, goal.direction, goal.image) == (device, direction, image))  # fmt: skip
        return next(here, None)

    @property
    def version(self) -> str:
        """The package's name and version, or the name alone of a file on the path."""
        package = next(iter(packages_distributions().get(self.module, [])), None)
        return f"{self.module} {version(package)}" if package else self.module

    def why_not(self, device: torch.device) -> str:
        """Why it cannot run on this device; empty if it can."""
        if device.type not in self.devices:
            return f"runs only on {' and '.join(self.devices)}"
        return "" if find_spec(self.module) else f"is not installed: {self.remedy}"

    def too_large(self, case: Case, device: torch.device) -> str:
        """Why this case is too much for it; empty if it is not."""
        needed, most = self.memory(case), _MEMORY_SHARE * timing.free_memory(device)
        if device.type == "cpu":
            most = min(most, _MOST_ON_CPU)
        return "" if needed <= most else f"needs about {needed / 2**30:.1f} GiB, and gets at most {most / 2**30:.1f}"


_MEMORY_SHARE = 0.8
# A peer that takes more on a CPU takes minutes.
_MOST_ON_CPU = 2 * 2**30


def grid_sample_apply(grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
    """``slice_apply`` composed from 5-D ``grid_sample`` and an affine map: what people write without an operator."""
    batch, channels, height, width = image.shape
    x = (torch.arange(width, dtype=grid.dtype, device=grid.device) + 0.5) / width * 2 - 1
    y = (torch.arange(height, dtype=grid.dtype, device=grid.device) + 0.5) / height * 2 - 1
    plane = (batch, height, width)
    place = torch.stack([x.expand(plane), y[:, None].expand(plane), guide * 2 - 1], -1)[:, None]
    maps = torch.nn.functional.grid_sample(grid, place, padding_mode="border", align_corners=False)
    maps = maps.view(batch, -1, channels + 1, height, width)
    return (maps[:, :, :-1] * image[:, None]).sum(2) + maps[:, :, -1]


def _grid_sample(case: Case, problem: Problem, *, compiled: bool = False) -> Run:
    function = grid_sample_apply
    if compiled:
        # Otherwise a backward pass would overwrite what the next repeat reads.
        import_module("torch._functorch.config").donated_buffer = False  # type: ignore[attr-defined]
        function = torch.compile(grid_sample_apply, dynamic=False)
    return lambda t: function(t["grid"], t["guide"], t["image"])


def _half_pixels(case: Case, device: torch.device) -> Tensor:
    """``(1, H, W, 2)``: each pixel's centre as (x, y), as shares of the image."""
    height, width = case.image
    x = (torch.arange(width, device=device) + 0.5) / width
    y = (torch.arange(height, device=device) + 0.5) / height
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]


def _lib_bilagrid(case: Case, problem: Problem) -> Run:
    library, grid = import_module("lib_bilagrid"), problem.tensors["grid"]
    depth, rows, columns = problem.grid_size
    module = library.BilateralGrid(1, columns, rows, depth).to(grid.device)
    places = _half_pixels(case, grid.device)
    index = torch.zeros(1, 1, dtype=torch.long, device=grid.device)

    def run(t: Tensors) -> Tensor:
        def grids(*given: Tensor) -> Tensor:
            return torch.func.functional_call(module, {"grids": t["grid"]}, given)

        return library.slice(grids, places, _interleaved(t["image"]), index)["rgb"].permute(0, 3, 1, 2)

    return run


def _fused_bilagrid(case: Case, problem: Problem, *, regular: bool) -> Run:
    sample = import_module("fused_bilagrid").fused_bilagrid_sample
    places = None if regular else _half_pixels(case, problem.tensors["grid"].device)[:, None]
    return lambda t: sample(t["grid"], places, _interleaved(t["image"])[:, None])[:, 0].permute(0, 3, 1, 2)


def _calibration() -> str:
    """Its backward takes the launch parameters that were fastest where it was calibrated."""
    found = import_module("fused_bilagrid._calibration_results")
    where = (getattr(found, "_SYSTEM_INFO", None) or "an unknown GPU").strip().partition("\n")[0].partition(" (UUID")[0]
    return f"calibrated on {where}; python -m fused_bilagrid.calibration does it here"


def _interleaved(image: Tensor) -> Tensor:
    """``(N, H, W, C)``, without a copy where the image lies so."""
    return image.permute(0, 2, 3, 1)


def _window(case: Case) -> int:
    """Pixels on a side of an exact filter's window, which reaches 1.5 sigma: what OpenCV takes when asked to choose."""
    return 2 * round(1.5 * GridSpec.parse(case.grid).sigma) + 1


def _kornia(case: Case, problem: Problem) -> Run:
    blur = import_module("kornia.filters").bilateral_blur
    sigma = GridSpec.parse(case.grid).sigma
    return lambda t: blur(t["image"], _window(case), SIGMA_COLOR, (sigma, sigma), border_type="reflect")


def _kornia_memory(case: Case) -> int:
    """Eight tensors with every pixel's whole window, what its graph keeps included."""
    return 8 * 4 * case.image[0] * case.image[1] * _window(case) ** 2


def _opencv(case: Case, problem: Problem) -> Run:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    sigma = GridSpec.parse(case.grid).sigma
    return lambda t: torch.from_numpy(
        cv2.bilateralFilter(t["image"].detach()[0, 0].numpy(), _window(case), SIGMA_COLOR, sigma)
    )[None, None]


def _halide(case: Case, problem: Problem) -> Run:
    from perf.halide_grid import bilateral_grid

    image = problem.tensors["image"][0, 0].contiguous().numpy()
    filter_, filled = bilateral_grid(image, round(GridSpec.parse(case.grid).sigma), SIGMA_COLOR)

    def run(t: Tensors) -> Tensor:
        filter_()
        return torch.from_numpy(filled)[None, None]

    return run


_FUSED = "git clone https://github.com/harry7557558/fused-bilagrid && pip install ./fused-bilagrid --no-build-isolation"
_LIBRARY = "put gsplat's folder examples on PYTHONPATH, and pip install tensorly"
_EXTRA = 'python -m pip install -c constraints.txt -e ".[peers]"'

_HD, _4K, _PHOTOGRAPH = RESOLUTIONS["1080p"], RESOLUTIONS["4k"], (1536, 2560)
_FUSED_GOALS = (Goal("cuda", "forward", _4K, 3), Goal("cuda", "backward", _4K, 10))

PEERS = (
    Peer(
        "grid_sample",
        "slice_apply",
        "torch",
        "5-D grid_sample and an affine map, eager",
        "",
        _grid_sample,
        goals=(
            Goal("cpu", "forward", _HD, 20),
            Goal("cpu", BOTH, _HD, 10),
            Goal("cuda", "forward", _4K, 20),
            Goal("cuda", "backward", _4K, 20),
        ),
    ),
    Peer(
        "grid_sample-compiled",
        "slice_apply",
        "torch",
        "the same under torch.compile",
        "",
        partial(_grid_sample, compiled=True),
    ),
    Peer(
        "lib_bilagrid",
        "slice_apply_luma",
        "lib_bilagrid",
        "the module of bilarf, gsplat and nerfstudio",
        _LIBRARY,
        _lib_bilagrid,
        kind="half-pixel",
    ),
    Peer(
        "fused_bilagrid-irregular",
        "slice_apply_luma",
        "fused_bilagrid",
        "its CUDA kernels for pixels anywhere, which gsplat runs",
        _FUSED,
        partial(_fused_bilagrid, regular=False),
        kind="half-pixel",
        devices=("cuda",),
        goals=_FUSED_GOALS,
    ),
    Peer(
        "fused_bilagrid-uniform",
        "slice_apply_luma",
        "fused_bilagrid",
        "its CUDA kernels for a whole image",
        _FUSED,
        partial(_fused_bilagrid, regular=True),
        kind="corner-aligned",
        devices=("cuda",),
        note=_calibration,
        goals=_FUSED_GOALS,
    ),
    Peer(
        "halide",
        "bilateral_filter_gray",
        "halide",
        "Halide's bilateral grid",
        _EXTRA,
        _halide,
        devices=("cpu",),
        gradients=False,
        exact=False,
        goals=(Goal("cpu", "forward", _PHOTOGRAPH, 1 / 1.2),),
    ),
    Peer(
        "opencv",
        "bilateral_filter_gray",
        "cv2",
        "bilateralFilter, exact within a window of 1.5 sigma",
        _EXTRA,
        _opencv,
        devices=("cpu",),
        gradients=False,
        exact=False,
    ),
    Peer(
        "kornia",
        "bilateral_filter_gray",
        "kornia",
        "bilateral_blur, the same window; only where its memory allows",
        _EXTRA,
        _kornia,
        exact=False,
        memory=_kornia_memory,
    ),
)
