"""HDRNet's speed, whole and by stage: ``python -m perf.hdrnet``.

Stages: ``shrink`` makes the small copy, ``network`` predicts the grid from it, ``guide`` computes the curves at full size, ``slicing`` reads the grid and
applies its maps; ``whole`` is a call from image to image. On a GPU each is replayed from a CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import bilagrid
from nets.hdrnet import HDRNet
from perf import arguments, cases, inputs, rows, timing
from perf.arguments import Parser, RefusalError
from perf.timing import Times, Work

_RESOLUTIONS = {"1080p": cases.RESOLUTIONS["1080p"], "4k": cases.RESOLUTIONS["4k"], "12mp": (3024, 4032)}
_COLUMNS = ("device", "torch", "triton", "numba", "height", "width", "stage", "repeats", "median_s", "q20_s", "q80_s")


def stages(net: HDRNet, image: Tensor) -> dict[str, Work]:
    """The whole and its parts, each on what the one before it gave."""
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
    """The same work as a replay of a CUDA graph; on the CPU as it is."""
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m perf.hdrnet",
        "Times HDRNet, whole and by stage, on the GPU if there is one and else on the CPU.",
        "examples:\n  python -m perf.hdrnet\n  python -m perf.hdrnet --threads 2 --out results",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=arguments.count("threads"), help="of torch and the kernels, on a CPU")
    parser.add_argument("--repeats", type=arguments.count("repeats"), default=15)
    parser.add_argument("--out", type=Path, metavar="DIR", help="writes hdrnet.csv there")
    parser.add_argument("--overwrite", action="store_true", help="replaces that file if it exists")
    return parser


def _run(options: argparse.Namespace) -> None:
    device = arguments.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    path = arguments.new_file(options, "hdrnet.csv")
    found = rows.versions()
    name = timing.device_name(device)
    print(f"{name}, torch {found['torch']}, float32")
    table: list[tuple[object, ...]] = []
    for label, image in _RESOLUTIONS.items():
        times = measure(image, device, options.repeats)
        whole = times["whole"].median
        parts = ", ".join(f"{stage} {1e3 * taken.median:.3g}" for stage, taken in times.items() if stage != "whole")
        print(f"{label:>5}: {1e3 * whole:.3g} ms, {1 / whole:.3g} images/s; {parts} ms", flush=True)
        for stage, taken in times.items():
            figures = (taken.repeats, *(f"{value:.6g}" for value in (taken.median, taken.q20, taken.q80)))
            table.append((name, found["torch"], found["triton"], found["numba"], *image, stage, *figures))
    rows.write_table(path, _COLUMNS, table)


def main(given: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 refused, 130 interrupted."""
    try:
        _run(_parser().parse_args(given))
    except KeyboardInterrupt:
        print("perf.hdrnet: interrupted", file=sys.stderr)
        return 130
    except (RefusalError, OSError) as error:
        print(f"perf.hdrnet: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
