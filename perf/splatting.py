"""A splatting-like training loop, with our colour grids and with a composition of torch's operators: ``python -m perf.splatting``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from bilagrid.compat import gsplat, pixel_grid
from perf import arguments, inputs, rows, timing
from perf.arguments import Device, Out, Repeats, Resolutions, Threads
from perf.checks import WrongResultError

OURS, ACTIVE, COMPOSITION, LIBRARY = "bilagrid", "bilagrid, active TV", "grid_sample", "lib_bilagrid"

_SIZE = (16, 16, 8)
_RESOLUTIONS = ((420, 648), (840, 1296))
_TV_WEIGHT = 10.0
_COLUMNS = (*rows.WHERE, "height", "width", "photographs", "loop", *rows.TIMES)
# The steps whose losses must agree before any is timed, and how nearly; rounding grows from step to step.
_CHECKED_STEPS, _TOLERANCE = 8, 1e-4


class CompositionGrid(nn.Module):
    """Colour grids by 5-D ``grid_sample``: the regular torch operators that `bilagrid.compat.gsplat.BilateralGrid` stands for."""

    def __init__(self, num: int, grid_X: int = 16, grid_Y: int = 16, grid_W: int = 8) -> None:
        super().__init__()
        identity = torch.eye(3, 4).reshape(1, 12, 1, 1, 1)
        self.grids = nn.Parameter(identity.repeat(num, 1, grid_W, grid_Y, grid_X))

    def forward(self, xy: Tensor, rgb: Tensor, index: Tensor) -> Tensor:
        """Maps ``(N, ..., 3, 4)`` for places ``(N, ..., 2)`` and colours ``(N, ..., 3)``, row n from grid ``index[n]``."""
        luma = rgb @ torch.tensor([0.299, 0.587, 0.114], dtype=rgb.dtype, device=rgb.device)
        places = torch.cat([xy, luma.unsqueeze(-1)], -1) * 2 - 1
        count = rgb.shape[0]
        flat = places.reshape(count, 1, 1, -1, 3)
        maps = nn.functional.grid_sample(self.grids[index], flat, padding_mode="border", align_corners=True)
        return maps.reshape(count, 12, -1).transpose(1, 2).reshape(*rgb.shape[:-1], 3, 4)


def composed_slice(module: CompositionGrid, xy: Tensor, rgb: Tensor, index: Tensor) -> dict[str, Tensor]:
    maps = module(xy.expand(*rgb.shape[:-1], 2), rgb, index.reshape(-1))
    return {"rgb": (maps[..., :3] @ rgb.unsqueeze(-1)).squeeze(-1) + maps[..., 3], "rgb_affine_mats": maps}


def composed_total_variation(grids: Tensor) -> Tensor:
    """The mean squared difference of neighbours, over the three axes."""
    means = [grids.diff(dim=axis).square().mean() for axis in (2, 3, 4) if grids.shape[axis] > 1]
    return torch.stack(means).sum() if means else grids.sum() * 0


COMPOSED = SimpleNamespace(
    BilateralGrid=CompositionGrid, slice=composed_slice, total_variation_loss=composed_total_variation
)


def photographs(image: Tensor, count: int) -> Tensor:
    """``count`` photographs ``(count, H, W, 3)`` of one scene ``(H, W, 3)``, which differ by up to a stop, in white balance and by a vignette; clipped."""
    generator = torch.Generator().manual_seed(0)
    stops = torch.linspace(-1, 1, count)[torch.randperm(count, generator=generator)]
    balance = 1 + 0.3 * (torch.rand(count, 3, generator=generator) - 0.5)
    height, width = image.shape[:2]
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    falloff = 1 - 0.2 * torch.rand(count, 1, 1, generator=generator) * (x.square() + y.square())
    gains = (2**stops).reshape(-1, 1, 1, 1) * balance.reshape(-1, 1, 1, 3) * falloff.unsqueeze(-1)
    return (gains.to(image) * image).clamp(0, 1)


@dataclass
class Loop:
    """Training under way: the scene, the grids, and what a step does.

    Attributes:
        library: what gives ``BilateralGrid``, ``slice`` and ``total_variation_loss``.
        active: whether total variation is over the step's grid alone.
        options: of ``BilateralGrid`` besides its sizes.
    """

    photos: Tensor
    library: Any
    active: bool = False
    size: tuple[int, int, int] = _SIZE
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        count, height, width, _ = self.photos.shape
        device = self.photos.device
        self.scene = self.photos.mean(0, keepdim=True).requires_grad_()
        self.grids = self.library.BilateralGrid(count, *self.size, **(self.options or {})).to(self.photos)
        self.xy = pixel_grid(height, width, device=device, dtype=self.photos.dtype)
        self.order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
        self.indices = torch.arange(count, device=device).reshape(-1, 1, 1)
        learned = [{"params": [self.scene], "lr": 1e-2}, {"params": list(self.grids.parameters()), "lr": 2e-3}]
        self.optimizer = torch.optim.Adam(learned)
        self.done = 0

    def step(self) -> Tensor:
        """One step on one photograph; returns its loss."""
        which = self.order[self.done % len(self.order)]
        self.done += 1
        index = self.indices[which]
        self.optimizer.zero_grad()
        seen = self.library.slice(self.grids, self.xy, self.scene, index)["rgb"]
        smooth = self.grids.tv_loss(index) if self.active else self.library.total_variation_loss(self.grids.grids)
        loss = (seen - self.photos[which]).square().mean() + _TV_WEIGHT * smooth
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def losses(self, steps: int) -> list[float]:
        return torch.stack([self.step() for _ in range(steps)]).tolist()


def loops(photos: Tensor) -> dict[str, Loop]:
    """All that can be timed here, by name."""
    found = {OURS: Loop(photos, gsplat), ACTIVE: Loop(photos, gsplat, active=True), COMPOSITION: Loop(photos, COMPOSED)}
    if find_spec(LIBRARY) is not None:
        found[LIBRARY] = Loop(photos, import_module(LIBRARY))
    return found


def check(photos: Tensor) -> float:
    """The largest relative difference between our losses and the others'; raises `WrongResultError` if it is more than rounding."""
    curves = {name: loop.losses(_CHECKED_STEPS) for name, loop in loops(photos).items() if name != ACTIVE}
    ours = curves.pop(OURS)
    worst = max(abs(a - b) / b for curve in curves.values() for a, b in zip(ours, curve, strict=True))
    if not worst <= _TOLERANCE:
        raise WrongResultError(f"the losses differ by {worst:.2g} of their value, more than {_TOLERANCE}")
    return worst


def measure(photos: Tensor, repeats: int) -> dict[str, timing.Times]:
    """The times of a step of each loop, in turns."""
    works: dict[str, Callable[[], object]] = {name: loop.step for name, loop in loops(photos).items()}
    return timing.take_turns(works, photos.device, repeats)


_Photographs = Annotated[int, {"type": arguments.count("photographs"), "metavar": "PHOTOGRAPHS"}]


def splatting(
    *,
    device: Device = None,
    threads: Threads = None,
    repeats: Repeats = 9,
    resolution: Resolutions = None,
    photographs_: _Photographs = 40,
    out: Out = None,
    overwrite: bool = False,
) -> int:
    """Times a step of a splatting-like training loop with our colour grids, and with others', on the GPU if there is one and else on the CPU.

    A scene, here an image, is learned from photographs of it that differ in exposure and white balance; a colour grid for each photograph takes up the
    difference, as in gsplat and nerfstudio. A step draws one photograph, slices its grid at the scene's pixels, and updates scene and grids by Adam, with total
    variation on the grids.

    First the losses are compared over 8 steps; the exit code is 1 if they differ. lib_bilagrid takes part if it is on PYTHONPATH (gsplat's folder examples,
    with tensorly).

    examples:
      python -m perf.splatting --threads 2 --resolution 840x1296 --photographs 200
      python -m perf.splatting --out results

    Args:
        resolution: 256, 512, 1080p, 4k, 8k or HEIGHTxWIDTH (default: 420x648 840x1296)
        photographs_: of the scene (default: %(default)s)
        out: write DIR/splatting.csv
        overwrite: replace DIR/splatting.csv
    """
    on = arguments.device(device, threads)
    path = arguments.new_file(out, "splatting.csv", overwrite)
    where = rows.where(on)
    print(f"{where[0]}, torch {where[1]}, float32, {photographs_} photographs, grids {'x'.join(map(str, _SIZE))}")
    table: list[tuple[object, ...]] = []
    for height, width in resolution or _RESOLUTIONS:
        image = inputs.picture("photograph", height, width, on)[0].permute(1, 2, 0)
        photos = photographs(image.cpu(), photographs_).to(on)
        try:
            worst = check(photos)
        except WrongResultError as error:
            print(f"perf.splatting: {error}", file=sys.stderr)
            return 1
        print(f"{height}x{width}: losses of {_CHECKED_STEPS} steps agree to {worst:.1g}")
        times = measure(photos, repeats)
        for loop, taken in times.items():
            ratio = taken.median / times[OURS].median
            print(f"  {loop:<20} {1e3 * taken.median:8.4g} ms a step, {ratio:.3g} times ours", flush=True)
            table.append((*where, height, width, photographs_, loop, *rows.seconds(taken)))
    rows.write_table(path, _COLUMNS, table)
    return 0


main = arguments.command(splatting)

if __name__ == "__main__":
    sys.exit(main())
