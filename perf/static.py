"""What the compiler says of every kernel, for GPUs that need not be there: ``python -m perf.static [--target sm_90 ...] [--json]``.

The launchers run on meta tensors and list what they would launch; each of these is compiled, in each of its configurations. Figures are
predictions, never measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
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
    """One kernel, compiled in one configuration for one target; ``spills`` in bytes a thread (registers on AMD), ``shared_limit`` what a program may have."""

    case: str
    kernel: str
    config: str
    target: str
    dtype: str
    registers: int
    spills: int
    shared_bytes: int
    shared_limit: int


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


def measure(job: Job) -> Row:
    """Compile one job and look at what came out."""
    case = CASES[job.case]
    launch = _launches(case, job.target)[job.launch]
    config = launch.configs[job.config]
    compiled = compile_launch(launch, config, job.target)
    registers, spills = _resources(compiled)
    constants = " ".join(f"{name}={value}" for name, value in config.kwargs.items())
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
    )


def survey(targets: Sequence[str], *, safe_only: bool = False, workers: int | None = None) -> Iterator[Row]:
    """Every variant of every kernel for ``targets``, in every configuration or only in the safe one."""
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        yield from pool.map(measure, jobs(targets, safe_only=safe_only))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.static", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=["sm_90"], help="architectures to compile for")
    parser.add_argument("--safe", action="store_true", help="only each kernel's safe configuration")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set, and an interpreted kernel cannot be compiled")
    fields = [field.name for field in dataclasses.fields(Row)]
    if not chosen.json:
        print("\t".join(fields))
    for row in survey(chosen.target, safe_only=chosen.safe):
        values = dataclasses.asdict(row)
        print(json.dumps(values) if chosen.json else "\t".join(str(values[name]) for name in fields), flush=True)


if __name__ == "__main__":
    main()
