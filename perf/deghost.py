"""What is saved and lost by a deghosting network at reduced size, carried to full size by a bilateral grid: ``python -m perf.deghost``."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bilagrid.commands import Refusal
from nets.deghost import BilateralDeghost, DeghostNet, load
from nets.deghost.bilateral import reduced
from nets.deghost.data import tensors
from nets.deghost.generator import Generated, Photographs
from nets.deghost.radiance import GAMMA, compressed, expanded, loss
from nets.weights import Network
from perf import arguments, inputs, rows, timing
from perf.arguments import Device, Out, Repeats, Threads
from perf.timing import Times, Work

METHODS = ("network", "carried", "enlarged")
_STOPS = (0.0, 2.0, 4.0)
_SEED = 1
_COLUMNS = (
    *rows.WHERE,
    *("weights", "carried_weights", "reduce", "method", "height", "width"),
    *rows.TIMES,
    *("peak_bytes",),
    *("scenes", "scene_height", "scene_width", "psnr_mu_db"),
)


class Models(NamedTuple):
    """The network for full size, and the one that is carried, as files or names of models that come along; and what exposures are shrunk by for the latter."""

    whole: str
    carried: str
    reduce: int

    def methods(self, device: torch.device) -> dict[str, torch.nn.Module]:
        """What each method runs: radiance of (ldr, ev)."""
        whole = load(self.whole, device)
        if not isinstance(whole, DeghostNet):
            raise Refusal(f"--weights {self.whole}: must hold a network for full size, holds a BilateralDeghost")
        carried = reduced(load(self.carried, device), self.reduce)
        assert isinstance(carried, BilateralDeghost)  # as reduce is more than 1
        return {"network": whole, "carried": carried, "enlarged": _Enlarged(carried)}


class _Enlarged(Network):
    """The network's result on shrunk exposures, enlarged bicubically as T(H)."""

    def __init__(self, carried: BilateralDeghost) -> None:
        super().__init__()
        self._carried, self.config = carried, carried.config

    def forward(self, ldr: Tensor, ev: Tensor) -> Tensor:
        small = compressed(self._carried.net(self._carried.shrunk(ldr), ev))
        return expanded(F.interpolate(small, size=ldr.shape[-2:], mode="bicubic"))


def bracket(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Three exposures of a photograph without motion, and their stops. What is in them makes no difference to time and memory."""
    radiance = inputs.picture("photograph", height, width, device)
    ldr = torch.empty(1, 3, 3, height, width, device=device)
    for k, stops in enumerate(_STOPS):
        torch.mul(radiance, 2.0 ** ((stops - _STOPS[1]) / GAMMA), out=ldr[:, k]).clamp_(0, 1)
    return ldr, torch.tensor([_STOPS], device=device)


def times(models: Models, size: tuple[int, int], device: torch.device, repeats: int) -> dict[str, Times]:
    """The time of each method, in turns."""
    ldr, ev = bracket(*size, device)
    with torch.inference_mode():
        works: dict[str, Work] = {name: partial(net, ldr, ev) for name, net in models.methods(device).items()}
        return timing.take_turns(works, device, repeats)


def peak_bytes(models: Models, method: str, size: tuple[int, int], device: torch.device, threads: int) -> int:
    """The most bytes that the exposures, the result and all that is in between take at once, measured in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_bytes, models, method, size, device, threads).result()


def _peak_bytes(models: Models, method: str, size: tuple[int, int], device: torch.device, threads: int) -> int:
    torch.set_num_threads(threads)
    net = models.methods(device)[method]
    with torch.inference_mode():
        # Kernels and libraries are loaded first.
        net(*bracket(64, 64, device))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            net(*bracket(*size, device))
            return torch.cuda.max_memory_allocated(device) - before
        ldr, ev = bracket(*size, device)
        before = _begin_peak() - ldr.nbytes
        net(ldr, ev)
        return _peak() - before


def _begin_peak() -> int:
    """Resets the peak if the system can, and returns the bytes that this process has now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The most bytes that this process has had at once."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else 1024 * usage


def qualities(models: Models, photographs: Sequence[Path], scenes: int, side: int, device: torch.device) -> dict[str, float]:  # fmt: skip
    """The mean PSNR-μ of each method, in dB, over scenes generated of photographs."""
    made = Generated(Photographs(photographs), side, _SEED)
    methods = models.methods(device)
    found: dict[str, list[float]] = {name: [] for name in methods}
    for k in range(scenes):
        ldr, ev, truth = (tensor[None].to(device) for tensor in tensors(made.bracket(k).aligned("homography")))
        with torch.inference_mode():
            for name, net in methods.items():
                found[name].append(-10 * loss(net(ldr, ev), truth).double().log10().item())
        figures = ", ".join(f"{name} {values[-1]:.2f}" for name, values in found.items())
        print(f"scene {k}: {figures} dB", flush=True)
    return {name: sum(values) / len(values) for name, values in found.items()}


_Photographs = Annotated[Sequence[Path], {"nargs": "*", "type": Path}]
_Times = Annotated[int, {"type": arguments.count("times")}]
_Scenes = Annotated[int, {"type": arguments.count("scenes")}]
_Pixels = Annotated[int, {"type": arguments.count("pixels")}]
_Size = Annotated[tuple[int, int], {"type": arguments.resolution}]


def deghost(
    photographs: _Photographs = (),
    *,
    weights: str = "deghost",
    carried: str | None = None,
    reduce: _Times = 4,
    scenes: _Scenes = 12,
    side: _Pixels = 1200,
    size: _Size = (3024, 4032),
    device: Device = None,
    threads: Threads = None,
    repeats: Repeats = 3,
    out: Out = None,
    overwrite: bool = False,
) -> None:
    """Compares a deghosting network at full size with one on shrunk exposures whose result is carried there: time, peak memory, and PSNR-μ on generated scenes.

    There are three ways to full size. network: it runs at full size. carried: it runs on shrunk exposures, and BilateralDeghost carries the result. enlarged:
    it runs on shrunk exposures, and the result is enlarged bicubically. Time and memory are of one bracket of 12 megapixels; PSNR-μ is the mean over scenes
    generated from photographs, aligned as merge aligns.

    examples:
      python -m nets.hdrnet photographs photos
      python -m perf.deghost photos/held_out --threads 2 --out results

    Args:
        photographs: to generate scenes from; without them there is no PSNR-μ
        weights: the network for full size: a file or a model that comes along (default: %(default)s)
        carried: the network that is carried; by default the same
        reduce: by how much exposures are shrunk, at least 2 (default: %(default)s)
        scenes: how many are generated (default: %(default)s)
        side: of the generated scenes, in pixels (default: %(default)s)
        size: of the bracket that is timed: HEIGHTxWIDTH (default: 3024x4032)
        out: write DIR/deghost.csv
        overwrite: replace DIR/deghost.csv
    """
    on = arguments.device(device, threads)
    path = arguments.new_file(out, "deghost.csv", overwrite)
    if reduce < 2:
        raise Refusal(f"--reduce must be at least 2, got {reduce}")
    models = Models(weights, carried or weights, reduce)
    models.methods(on)
    for photograph in photographs:
        if not photograph.exists():
            raise Refusal(f"{photograph}: no such file or folder")
    where = rows.where(on)
    print(f"{where[0]}, torch {where[1]}, float32, {size[0]}x{size[1]}, shrunk by {reduce}")
    peaks = {method: peak_bytes(models, method, size, on, torch.get_num_threads()) for method in METHODS}
    taken = times(models, size, on, repeats)
    quality = qualities(models, photographs, scenes, side, on) if photographs else {}
    table: list[tuple[object, ...]] = []
    for method in METHODS:
        time, peak = taken[method], peaks[method]
        ratios = f"{taken['network'].median / time.median:.1f} and {peaks['network'] / peak:.1f} times less"
        psnr = f", {quality[method]:.2f} dB" if quality else ""
        print(f"{method:>8}: {time.median:.3g} s, {peak / 1e9:.2f} GB ({ratios}){psnr}", flush=True)
        generated = (scenes, side, side, f"{quality[method]:.3f}") if quality else ("",) * 4
        stems = (Path(model).stem for model in models[:2])
        table.append((*where, *stems, reduce, method, *size, *rows.seconds(time), peak, *generated))
    rows.write_table(path, _COLUMNS, table)


main = arguments.command(deghost)

if __name__ == "__main__":
    sys.exit(main())
