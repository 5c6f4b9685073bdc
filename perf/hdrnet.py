"""HDRNet's speed, whole and by stage: ``python -m perf.hdrnet``."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import bilagrid
from nets.hdrnet import HDRNet
from perf import arguments, cases, inputs, rows, timing
from perf.arguments import Device, Out, Repeats, Threads
from perf.timing import Times, Work

_RESOLUTIONS = {"1080p": cases.RESOLUTIONS["1080p"], "4k": cases.RESOLUTIONS["4k"], "12mp": (3024, 4032)}
_COLUMNS = (*rows.WHERE, "height", "width", "stage", *rows.TIMES)


def stages(net: HDRNet, image: Tensor) -> dict[str, Work]:
    """The whole and its stages, each on the result of the one before."""
    low = net.shrink(image)
    grid = net.coefficients(low)
    guide = net.guide_of(0)(image)
    return {
        "whole": lambda: net(image),
        "shrink": lambda: net.shrink(image),
        "network": lambda: net.coefficients(low),
        "guide": lambda: net.guide_of(0)(image),
        "slicing": lambda: bilagrid.slice_apply(grid, guide, image),
    }


def captured(work: Work, device: torch.device) -> Work:
    """The same work, on a GPU as the replay of a CUDA graph."""
    if device.type == "cpu":
        return work
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        work()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def measure(image: tuple[int, int], device: torch.device, repeats: int) -> dict[str, Times]:
    """The times of each stage at one size of image, in turns."""
    torch.manual_seed(0)
    net = HDRNet().to(device).eval()
    picture = inputs.picture("photograph", *image, device)
    with torch.inference_mode():
        works = {name: captured(work, device) for name, work in stages(net, picture).items()}
        return timing.take_turns(works, device, repeats)


def hdrnet(
    *,
    device: Device = None,
    threads: Threads = None,
    repeats: Repeats = 15,
    out: Out = None,
    overwrite: bool = False,
) -> None:
    """Times HDRNet, whole and by stage, on the GPU if there is one and else on the CPU.

    Stages: shrink makes the small copy, network predicts the grid from it, guide computes the curves at full size, slicing reads the grid and
    applies its maps; whole is a call from image to image. On a GPU each is replayed from a CUDA graph.

    examples:
      python -m perf.hdrnet
      python -m perf.hdrnet --threads 2 --out results

    Args:
        out: write DIR/hdrnet.csv
        overwrite: replace DIR/hdrnet.csv
    """
    on = arguments.device(device, threads)
    path = arguments.new_file(out, "hdrnet.csv", overwrite)
    where = rows.where(on)
    print(f"{where[0]}, torch {where[1]}, float32")
    table: list[tuple[object, ...]] = []
    for label, image in _RESOLUTIONS.items():
        times = measure(image, on, repeats)
        whole = times["whole"].median
        parts = ", ".join(f"{stage} {1e3 * taken.median:.3g}" for stage, taken in times.items() if stage != "whole")
        print(f"{label:>5}: {1e3 * whole:.3g} ms, {1 / whole:.3g} images/s; {parts} ms", flush=True)
        for stage, taken in times.items():
            table.append((*where, *image, stage, *rows.seconds(taken)))
    rows.write_table(path, _COLUMNS, table)


main = arguments.command(hdrnet)

if __name__ == "__main__":
    sys.exit(main())
