"""What the compiler says of every kernel, for GPUs that need not be there: ``python -m perf.static``."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from bilagrid.gpu import _launch
from bilagrid.gpu._configs import label
from perf import arguments, disassembly
from perf.uses import TILE_USES, USES, Use


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
class Fit:
    """One kernel, compiled in one configuration for one target, and what it takes there.

    Attributes:
        case: the use that the kernel is compiled for, of `perf.uses`.
        precision: torch's for matrix products.
        registers: of a thread; ``spills`` are bytes a thread (registers on AMD).
        shared_bytes: of a program; ``shared_limit`` is what one may have.
        atomics: instructions that read, change and write memory in one go: none, for the same bits on every run.
        forgotten: values that loops carry and the compiler dropped: none, or what the kernel computes is wrong.
    """

    case: str
    kernel: str
    config: str
    target: str
    dtype: str
    precision: str
    registers: int
    spills: int
    shared_bytes: int
    shared_limit: int
    atomics: int
    forgotten: int


@dataclass(frozen=True)
class Row(Fit):
    """And what its machine code does.

    Attributes:
        unit: what the kernel goes through: pixels, nodes of a grid, or elements of what lies between them.
        instructions_per_pixel: that a thread would issue for one ``unit``: a warp's, times its lanes, over the units that a program handles; counted in the
            innermost loop where that goes through them, and in the whole program otherwise.
        load_bits: of a lane, in the widest global load.
        l1_bytes_per_pixel: that a program's lanes ask of L1, or of what lies behind it, for one ``unit``.
    """

    unit: str
    instructions_per_pixel: float
    load_bits: int
    l1_bytes_per_pixel: float


_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64"} | {
    torch.int64: "*i64",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Job:
    """What to compile: for a target, a use by its number, of its launches one, and of that launch's configurations one."""

    target: str
    use: int
    launch: int
    config: int


# Uses by their number: a function cannot be sent to another process, its place in a list can.
_EVERY_USE = [*USES, *TILE_USES]


def jobs(targets: Sequence[str], *, chosen_only: bool = False, tiles: bool = False) -> list[Job]:
    """What there is to compile: each variant of a kernel once, in the configuration that it would be launched in; the others of its configurations for
    the first use that launches it, or not at all."""
    found: dict[str, Job] = {}
    for target in targets:
        for number, use in enumerate(_EVERY_USE if tiles else USES):
            for i, launch in enumerate(use.launches(target)):
                name = f"{target} {launch.kernel.__name__}"
                for j, config in enumerate(launch.configs):
                    if config is launch.config:
                        found.setdefault(f"{name} {config} {specialise(launch)}", Job(target, number, i, j))
                    elif not chosen_only:
                        found.setdefault(f"{name} {config}", Job(target, number, i, j))
    return list(found.values())


def specialise(launch: _launch.Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
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
    signature, constants, attributes = specialise(launch)
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

    Where it does not, the loop goes over channels or taps, and makes about ``loads`` loads for an element in all its turns. Where loops that lie in one another
    walk, ``turns`` are each one's within the one around it, from the outside in. ``count`` is what the launch goes through in all. ``curves`` and ``knots`` are the turns of loops that lie in one another, the inner of which load each knot's shift and
    slope. On AMD, where such loops are not taken apart and scalars are not loaded by lanes, that is counted by ``loads`` and comes out far too high.
    """

    unit: str
    elements: float
    count: float
    walks: bool
    loads: int = 0
    curves: int = 0
    knots: int = 0
    turns: tuple[float, ...] = ()

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
            a_lane = figure(loop) / program.unrolled * math.prod(self.turns)
            for within, around in zip(range(1, len(self.turns)), reversed(program.around), strict=False):
                a_lane += figure(around) * math.prod(self.turns[:-within])
        elif self.curves and program.nests:
            a_lane = figure(program.whole)
            for outer, inner in program.nests:
                a_lane += figure(outer) * (self.curves - 1)
                left = self.knots
                for knots in inner:
                    rounds, left = divmod(left, max(len(knots.load_bits) // 2, 1))
                    a_lane += figure(knots) * self.curves * (rounds - 1)
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
    if name in ("_reduce_cells_kernel", "_reduce_columns_kernel", "_reduce_nodes_kernel"):
        image = given["image_ptr"]
        pixels = image.shape[0] * image.shape[2] * image.shape[3]
        # Every tile reads every pixel.
        if name == "_reduce_nodes_kernel":
            # A strip begins a row of cells early, a program's first lane begins its nodes, and lanes wait for that of the widest cell.
            rows, columns = (max(image.shape[k] / max(given[size] - 1, 1), 1.0) for k, size in ((2, "Gh"), (3, "Gw")))
            owned = given["strip_rows"] * rows * (given["CELLS"] - 1) * columns
            turns = given["strip_rows"] + 1, rows, math.ceil(columns)
            return Share("pixel", owned / tiles, pixels, True, turns=turns)
        turn = given["PIXELS"] if "PIXELS" in given else given["COLUMNS"] * given["ROWS"]
        return Share("pixel", turn / tiles, pixels, True)
    if name in ("_curves_kernel", "_curves_bwd_kernel"):
        curves, knots = given["shifts_ptr"].shape
        count = launch.programs * launch.configs[0].kwargs["BLOCK"]
        return Share("pixel", given["BLOCK"], count, False, 2 * curves * knots, curves, knots)
    if name == "_add_parts_kernel":
        return Share("partial sum", given["BLOCK"], given["partial_ptr"].numel(), True)
    if name == "_slice_points_bwd_grid_kernel":
        # A point is visited by the eight nodes around, for each tile of channels.
        visits = 8 * triton.cdiv(given["C"], given["TILE_C"])
        return Share("point", given["BLOCK"] / visits, given["points_ptr"].numel() // 3, True)
    if name == "_collect_kernel":
        return Share("node", given["BLOCK"], given["out_ptr"].numel(), False)
    if name == "_add_shares_kernel":
        return Share("node", given["BLOCK"], given["count"], True)
    if "points_ptr" in given:
        loads = {"_slice_points_kernel": 8, "_slice_points_bwd_points_kernel": 9}.get(name, 0) * given.get("C", 1)
        return Share("point", given["BLOCK"], given["count"], False, loads)
    if name in ("_interpolate_rows_kernel", "_copy_nodes_kernel"):
        return Share("table element", 4 * given["BLOCK"], given["table_ptr"].numel(), True)
    if name == "_combine_kernel":
        # Of a block's slots most often one is full, and each of four nodes reads a quarter of it.
        count = given["partial_ptr"].numel() / given["slots"]
        return Share("partial sum", given["PARTS"] * given["TILE_C"] * planes, count, True)
    if name == "_sum_differences_kernel":
        return Share("node", given["BLOCK"], given["grid_ptr"].numel(), True)
    if name == "_total_kernel":
        return Share("partial sum", given["BLOCK"], given["partial_ptr"].numel(), True)
    if name == "_blur_pair_kernel":
        # A strip begins and ends so many places early and late, but for those beyond the border.
        reach, places = given["RADIUS_M"], given["nodes_m"]
        strips = triton.cdiv(places, given["STRIP"])
        repeats = 1 + reach * (2 * strips - 1) / places
        return Share("node", given["BLOCK"] / repeats, given["out_ptr"].numel(), True)
    if "out_ptr" in given and "guide_ptr" not in given:
        taps = sum(2 * value + 1 for key, value in given.items() if key.startswith("radius"))
        elements = given["BLOCK"] if "BLOCK" in given else given["ROWS"] * given["COLUMNS"]
        return Share("node", elements, given["out_ptr"].numel(), False, taps)
    # The direct kernels read eight corners of the grid for each channel, and `_slice_bwd_guide_direct_kernel` one of the values too.
    loads = {"_slice_direct_kernel": 8, "_slice_bwd_guide_direct_kernel": 9}.get(name, 0) * given.get("C", 0)
    count = launch.programs * launch.configs[0].kwargs["BLOCK"]
    return Share("pixel", given["BLOCK"], count, False, loads)


def lanes(config: triton.Config, target: str) -> int:
    """Threads of a program."""
    return config.num_warps * TARGETS[target].gpu.warp_size


def measure(job: Job) -> Row:
    """Compile one job and look at what came out."""
    return measure_launch(*_named(job))


def fit(job: Job) -> Fit:
    """Compile one job and look at what it takes, without reading its machine code, which is half of the time."""
    named = _named(job)
    return _fit(compile_launch(*named[1:]), *named)


def _named(job: Job) -> tuple[Use, _launch.Launch, triton.Config, str]:
    use = _EVERY_USE[job.use]
    launch = use.launches(job.target)[job.launch]
    return use, launch, launch.configs[job.config], job.target


def measure_launch(use: Use, launch: _launch.Launch, config: triton.Config, target: str) -> Row:
    """Compile a launch in one configuration and look at what came out."""
    compiled = compile_launch(launch, config, target)
    program = disassembly.read(compiled)
    dealt, threads = share(launch, config), lanes(config, target)
    return Row(
        **vars(_fit(compiled, use, launch, config, target)),
        unit=dealt.unit,
        instructions_per_pixel=dealt.each(program, threads),
        load_bits=max(program.whole.load_bits, default=0),
        l1_bytes_per_pixel=dealt.each(program, threads, lambda code: code.load_bytes),
    )


def _fit(compiled: CompiledKernel, use: Use, launch: _launch.Launch, config: triton.Config, target: str) -> Fit:
    registers, spills = _resources(compiled)
    return Fit(
        case=use.name,
        kernel=launch.kernel.__name__,
        config=label(config),
        target=target,
        dtype=str(use.dtype).removeprefix("torch."),
        precision=use.precision,
        registers=registers,
        spills=spills,
        shared_bytes=compiled.metadata.shared,
        shared_limit=TARGETS[target].shared_limit,
        atomics=disassembly.atomics(compiled),
        forgotten=disassembly.forgotten(compiled),
    )


def survey(todo: Sequence[Job], look: Callable[[Job], Fit] = measure) -> Iterator[Fit]:
    """The rows of some jobs, compiled side by side: each looked at by `measure`, or `fit`."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(look, todo)


_Targets = Annotated[Sequence[str], {"nargs": "+", "choices": TARGETS, "metavar": "TARGET"}]


def static(
    *,
    target: _Targets = tuple(TARGETS),
    chosen: bool = False,
    tiles: bool = False,
    fits: bool = False,
    json_: bool = False,
) -> None:
    """What the compiler says of every kernel, for GPUs that need not be there.

    The launchers run on meta tensors and list what they would launch; each of these is compiled, in each of its configurations. Figures are
    predictions, never measurements. Rows go to standard output, progress to standard error.

    examples:
      python -m perf.static --target sm_90 --chosen
      python -m perf.static --target sm_90 gfx942 --json > rows.json

    Args:
        target: architectures to compile for: %(choices)s (default: all)
        chosen: only the configurations that kernels are launched in
        tiles: also grids of 4 to 64 planes and 1 to 32 channels
        fits: only registers, spills and shared memory, in half the time
        json_: a JSON list of objects in place of a table
    """
    arguments.check_compiled("an interpreted kernel cannot be compiled")
    fields = [field.name for field in dataclasses.fields(Fit if fits else Row)]
    todo = jobs(target, chosen_only=chosen, tiles=tiles)
    if not json_:
        print("\t".join(fields))
    rows = []
    for row in survey(todo, fit if fits else measure):
        rows.append(dataclasses.asdict(row))
        if sys.stderr.isatty():
            print(
                f"\r{len(rows)} of {len(todo)} compiled",
                end="\n" if len(rows) == len(todo) else "",
                file=sys.stderr,
                flush=True,
            )
        if not json_:
            print("\t".join(str(rows[-1][name]) for name in fields), flush=True)
    if json_:
        print(json.dumps(rows, indent=1))


main = arguments.command(static)

if __name__ == "__main__":
    sys.exit(main())
