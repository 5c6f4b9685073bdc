"""What the compiler says of every kernel, for GPUs that need not be there: ``python -m perf.static [--target sm_90 ...] [--json]``.

The launchers run on meta tensors and list what they would launch; each of these is compiled, in each of its configurations. Figures are
predictions, never measurements. Rows go to standard output, progress to standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from bilagrid.gpu import _launch, _regime, blur, slice, slice_apply, splat, total_variation
from bilagrid.lattice import Lattice
from perf import disassembly


@dataclass(frozen=True)
class Target:
    """An architecture to compile for, and the shared memory (bytes) that a program may have there."""

    gpu: GPUTarget
    shared_limit: int


TARGETS = {
    "sm_75": Target(GPUTarget("cuda", 75, 32), 64 * 1024),
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_86": Target(GPUTarget("cuda", 86, 32), 99 * 1024),
    "sm_89": Target(GPUTarget("cuda", 89, 32), 99 * 1024),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 * 1024),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 99 * 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
    "gfx1100": Target(GPUTarget("hip", "gfx1100", 32), 64 * 1024),
}


@dataclass(frozen=True)
class Row:
    """One kernel, compiled in one configuration for one target.

    Attributes:
        registers: of a thread; ``spills`` are bytes a thread (registers on AMD).
        shared_bytes: of a program; ``shared_limit`` is what one may have.
        unit: what the kernel goes through: pixels, nodes of a grid, or elements of what lies between them.
        instructions_per_pixel: that a thread would issue for one ``unit``: a warp's, times its lanes, over the units that a program handles; counted in the
            innermost loop where that goes through them, and in the whole program otherwise.
        load_bits: of a lane, in the widest global load.
        l1_bytes_per_pixel: that a program's lanes ask of L1, or of what lies behind it, for one ``unit``.
    """

    case: str
    kernel: str
    config: str
    target: str
    dtype: str
    registers: int
    spills: int
    shared_bytes: int
    shared_limit: int
    unit: str
    instructions_per_pixel: float
    load_bits: int
    l1_bytes_per_pixel: float


@dataclass(frozen=True)
class Case:
    """A use of the operators whose kernels are compiled: ``run`` calls launchers on meta tensors."""

    name: str
    dtype: torch.dtype
    run: Callable[[torch.dtype], None]


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _affine(dtype: torch.dtype, *, luma: bool, height: int = 1080, size: tuple[int, int, int] = (8, 16, 16)) -> None:
    """`slice_apply` of 3 x 4 coefficients and its gradients, the grid in float32 as beside a half image."""
    width = height * 16 // 9
    lattice = Lattice.cell_centered(size, (height, width))
    grid_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    grid = _empty(1, 12, *size, dtype=grid_dtype)
    guide = None if luma else _empty(1, height, width, dtype=dtype)
    image = _empty(1, 3, height, width, dtype=dtype)
    grad = slice_apply.slice_apply(grid, guide, image, lattice, offset=True)
    slice_apply.slice_apply_bwd_pixels(grid, guide, image, grad, lattice, offset=True)
    slice_apply.slice_apply_bwd_grid(guide, image, grad, lattice, offset=True)


def _features(dtype: torch.dtype) -> None:
    """`splat` and `slice` of 12 channels with their derivatives by z."""
    lattice = Lattice.cell_centered((8, 16, 16), (1080, 1920))
    guide, values = _empty(1, 1080, 1920, dtype=dtype), _empty(1, 12, 1080, 1920, dtype=dtype)
    for dz in (False, True):
        slice.slice(splat.splat(values, guide, lattice, dz=dz).to(dtype), guide, lattice, dz=dz)
    slice.slice_bwd_guide(_empty(1, 12, 8, 16, 16, dtype=dtype), guide, values, lattice)


def _filter(dtype: torch.dtype) -> None:
    """A gray bilateral filter, its gradient by the guide, and the regulariser."""
    lattice = Lattice.half_pixel((16, 135, 240), (1080, 1920))
    guide, values = _empty(1, 1080, 1920, dtype=dtype), _empty(1, 1, 1080, 1920, dtype=dtype)
    grid = blur.blur(splat.splat(values, guide, lattice, homogeneous=True), (1.0, 1.0, 1.0))
    slice.slice_normalized(grid, guide, lattice)
    slice.slice(grid, guide, lattice)
    slice.slice_bwd_guide(grid, guide, values, lattice, homogeneous=True)
    total_variation.total_variation(grid)
    total_variation.total_variation_bwd(grid)


CASES = [
    Case("slice_apply, 3x4, guide", torch.float32, lambda dtype: _affine(dtype, luma=False)),
    Case("slice_apply, 3x4, guide", torch.float16, lambda dtype: _affine(dtype, luma=False)),
    Case("slice_apply, 3x4, luma", torch.float32, lambda dtype: _affine(dtype, luma=True)),
    Case("slice_apply, 3x4, fine", torch.float32, lambda dtype: _affine(dtype, luma=False, size=(8, 135, 240))),
    Case("slice_apply, 3x4, int64", torch.float32, lambda dtype: _affine(dtype, luma=True, height=30240)),
    Case("splat and slice, C=12, D=8", torch.float32, _features),
    Case("splat and slice, C=12, D=8", torch.float16, _features),
    Case("filter, C=2 homogeneous, D=16", torch.float32, _filter),
    Case("filter, C=2 homogeneous, D=16", torch.float16, _filter),
    Case("slice_apply, 3x4, guide", torch.float64, lambda dtype: _affine(dtype, luma=False)),
]

_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64"}


@dataclass(frozen=True)
class Job:
    """What to compile, by its number in `CASES`, among the case's launches and among the launch's configurations."""

    target: str
    case: int
    launch: int
    config: int


def jobs(targets: Sequence[str], *, safe_only: bool = False) -> list[Job]:
    """What there is to compile: each variant of a kernel once, in its safe configuration or in all."""
    found: dict[str, Job] = {}
    for target in targets:
        for number, case in enumerate(CASES):
            for i, launch in enumerate(_launches(case, target)):
                for j, config in enumerate(launch.configs[: 1 if safe_only else None]):
                    key = f"{target} {launch.kernel.__name__} {config} {_specialise(launch)}"
                    found.setdefault(key, Job(target, number, i, j))
    return list(found.values())


def _launches(case: Case, target: str) -> list[_launch.Launch]:
    with _regime.override(architecture=target), _launch.record() as launches:
        case.run(case.dtype)
    return launches


def _specialise(launch: _launch.Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """Signature, constants and attributes that Triton would give the launch: a 1 is a constant, and what 16 divides is said to be so."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        value = launch.arguments.get(name)
        fixed = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and not fixed):
            signature[name] = "constexpr"
            if name in launch.arguments:
                constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not fixed:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: _launch.Launch, config: triton.Config, target: str) -> CompiledKernel:
    """A recorded launch compiled for a target."""
    signature, constants, attributes = _specialise(launch)
    source = ASTSource(launch.kernel, signature, constants | config.kwargs, attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": _launch.FP_FUSION}
    return triton.compile(source, target=TARGETS[target].gpu, options=options)


def _resources(compiled: CompiledKernel) -> tuple[int, int]:
    """Registers a thread, and spills."""
    if "cubin" in compiled.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            tool = triton.knobs.nvidia.cuobjdump.path
            command = [tool, "--dump-resource-usage", file.name]
            report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report))
        return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])
    counts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", compiled.asm["amdgcn"]))
    return int(counts["vgpr_count"]), int(counts["vgpr_spill_count"]) + int(counts["sgpr_spill_count"])


@dataclass(frozen=True)
class Share:
    """How a launch's work is dealt out: ``elements``, in ``unit``, to a program, or to a turn of its innermost loop where that ``walks`` through them.

    Where it does not, the loop goes over channels or taps, and makes about ``loads`` loads for an element in all its turns. ``count`` is what the launch goes
    through in all.
    """

    unit: str
    elements: float
    count: float
    walks: bool
    loads: int = 0

    def each(
        self,
        program: disassembly.Program,
        lanes: int,
        figure: Callable[[disassembly.Code], float] = lambda code: code.instructions,
    ) -> float:
        """A lane's ``figure``, as instructions or bytes, summed over a program's lanes, for one element."""
        loop = program.loop
        if loop is None:
            a_lane = figure(program.whole)
        elif self.walks:
            a_lane = figure(loop) / program.unrolled
        else:
            turns = max(self.loads * self.elements / lanes / max(len(loop.load_bits), 1), 1)
            a_lane = figure(program.whole) + figure(loop) * (turns - 1)
        return round(a_lane * lanes / self.elements, 2)


def share(launch: _launch.Launch, config: triton.Config) -> Share:
    """How a launch deals out its work, from its constants."""
    given = launch.arguments | config.kwargs
    name = launch.kernel.__name__
    planes, channels = given.get("PLANES", 1), given.get("CHANNELS", 1)
    tiles = triton.cdiv(given.get("D", 1), planes) * triton.cdiv(channels, given.get("TILE_C", 16))
    if "PIXELS" in given or "NODES" in given:
        image = given["image_ptr"]
        pixels = image.shape[0] * image.shape[2] * image.shape[3]
        # Every tile reads every pixel; where a program owns nodes, a pixel is in the footprints of four.
        repeats = tiles if "PIXELS" in given else 4 * tiles
        return Share("pixel", given.get("PIXELS", given.get("NODES")) / repeats, pixels, True)
    if name == "_interpolate_rows_kernel":
        return Share("table element", given["BLOCK"], given["table_ptr"].numel(), True)
    if name == "_combine_cells_kernel":
        return Share("partial sum", 16 * planes, given["partial_ptr"].numel(), True)
    if name == "_sum_differences_kernel":
        return Share("node", given["BLOCK"], given["grid_ptr"].numel(), True)
    if name == "_total_kernel":
        return Share("partial sum", given["BLOCK"], given["partial_ptr"].numel(), True)
    loads = {
        "_blur_kernel": 2 * given.get("radius", 0) + 1,
        # Eight corners of the grid and a channel of the image or gradient for each coefficient.
        "_slice_apply_fine_kernel": 9 * given.get("OUTPUTS", 0) * given.get("TERMS", 0),
        "_slice_apply_bwd_pixels_fine_kernel": 9 * given.get("OUTPUTS", 0) * given.get("TERMS", 0),
    }
    unit = "pixel" if "guide_ptr" in given else "node"
    elements = given.get("BLOCK", 1)
    return Share(unit, elements, launch.programs * elements, False, loads.get(name, 0))


def lanes(config: triton.Config, target: str) -> int:
    """Threads of a program."""
    return config.num_warps * TARGETS[target].gpu.warp_size


def measure(job: Job) -> Row:
    """Compile one job and look at what came out."""
    case = CASES[job.case]
    launch = _launches(case, job.target)[job.launch]
    config = launch.configs[job.config]
    compiled = compile_launch(launch, config, job.target)
    registers, spills = _resources(compiled)
    constants = " ".join(f"{name}={value}" for name, value in config.kwargs.items())
    program = disassembly.read(compiled)
    dealt, threads = share(launch, config), lanes(config, job.target)
    return Row(
        case=case.name,
        kernel=launch.kernel.__name__,
        config=f"{constants} warps={config.num_warps} stages={config.num_stages}".strip(),
        target=job.target,
        dtype=str(case.dtype).removeprefix("torch."),
        registers=registers,
        spills=spills,
        shared_bytes=compiled.metadata.shared,
        shared_limit=TARGETS[job.target].shared_limit,
        unit=dealt.unit,
        instructions_per_pixel=dealt.each(program, threads),
        load_bits=max(program.whole.load_bits, default=0),
        l1_bytes_per_pixel=dealt.each(program, threads, lambda code: code.load_bytes),
    )


def survey(targets: Sequence[str], *, safe_only: bool = False, workers: int | None = None) -> Iterator[Row]:
    """Every variant of every kernel for ``targets``, in every configuration or only in the safe one."""
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        yield from pool.map(measure, jobs(targets, safe_only=safe_only))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.static", description=__doc__)
    parser.add_argument(
        "--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="architectures to compile for (all of them)"
    )
    parser.add_argument("--safe", action="store_true", help="only each kernel's safe configuration")
    parser.add_argument("--json", action="store_true", help="a JSON list of objects in place of a table")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set, and an interpreted kernel cannot be compiled")
    fields = [field.name for field in dataclasses.fields(Row)]
    total = len(jobs(chosen.target, safe_only=chosen.safe))
    if not chosen.json:
        print("\t".join(fields))
    rows = []
    for row in survey(chosen.target, safe_only=chosen.safe):
        rows.append(dataclasses.asdict(row))
        if sys.stderr.isatty():
            print(
                f"\r{len(rows)} of {total} compiled",
                end="\n" if len(rows) == total else "",
                file=sys.stderr,
                flush=True,
            )
        if not chosen.json:
            print("\t".join(str(rows[-1][name]) for name in fields), flush=True)
    if chosen.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
