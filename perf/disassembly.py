"""What a compiled kernel's machine code says: its instructions, its innermost loop, and how wide its global loads are.

Counts are of a warp's instructions (a wave's on AMD), each once for all its lanes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import triton
from triton.compiler import CompiledKernel


@dataclass(frozen=True)
class Code:
    """A stretch of machine code: how many instructions, and the bits that a lane reads in each of its global loads."""

    instructions: int
    load_bits: tuple[int, ...]

    def __add__(self, other: Code) -> Code:
        return Code(self.instructions + other.instructions, self.load_bits + other.load_bits)

    @property
    def load_bytes(self) -> float:
        """Bytes that a lane loads from global memory, whichever cache serves them."""
        return sum(self.load_bits) / 8


def _reads_most(loop: Code) -> tuple[bool, int]:
    """Orders loops: those that go through pixels or nodes load them, those that add up or store what was found need not."""
    return bool(loop.load_bits), loop.instructions


# Loops that lie in no other, each with those directly in it.
Nests = tuple[tuple[Code, tuple[Code, ...]], ...]


@dataclass(frozen=True)
class Program:
    """A kernel's code, and that of its innermost loop where there is one: of several, the longest that loads.

    ``unrolled`` is how many turns of the loop as written one turn of the machine's makes, as far as its loads tell. ``around`` are the loops that it lies
    in, from the outside in, each less the next. ``nests`` are in the order of the code, and not known on AMD, where a loop's blocks may lie anywhere.
    """

    whole: Code
    loop: Code | None
    unrolled: int
    around: tuple[Code, ...] = ()
    nests: Nests = ()


def read(compiled: CompiledKernel) -> Program:
    """The program in the compiler's output, for NVIDIA or AMD."""
    if "amdgcn" in compiled.asm:
        whole, loop, around = _amd(compiled.asm["amdgcn"])
        return Program(whole, loop, 1, around)
    whole, loop, around, nests = _between_branches(_sass(compiled.asm["cubin"]), _sass_load_bits)
    _, written, *_ = _between_branches(compiled.asm["ptx"].splitlines(), _ptx_load_bits)
    loads, once = (len(part.load_bits) if part else 0 for part in (loop, written))
    return Program(whole, loop, max(round(loads / once), 1) if once else 1, around, nests)


# In PTX on global and shared memory (redux, which is none, goes between a warp's lanes), and AMD's.
_ATOMIC = re.compile(r"\b(?:atom|red)\.|\b(?:global|flat|buffer)_atomic|\bds_(?:add|sub|min|max|cmpst|cmpstore)_")


def atomics(compiled: CompiledKernel) -> int:
    """The instructions that read, change and write memory in one go, as the compiler hands them to the assembler."""
    return len(_ATOMIC.findall(compiled.asm.get("ptx") or compiled.asm["amdgcn"]))


# A loop in Triton's own code, and a value that it carries from turn to turn.
_LOOP = re.compile(r"scf\.for .* iter_args\((.*?)\) ->")


def forgotten(compiled: CompiledKernel) -> int:
    """The values that loops carry as the kernel is written and no longer where it is laid out for threads."""
    written, laid_out = (
        sum(found.count(" = ") for found in _LOOP.findall(compiled.asm[stage])) for stage in ("ttir", "ttgir")
    )
    return max(written - laid_out, 0)


def _sass(cubin: bytes) -> list[str]:
    """Labels and instructions, without addresses and the padding after the program's end."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"^(\.L_\w+:)|^\s+/\*[0-9a-f]{4,}\*/\s+(.+?)\s*;", text, re.MULTILINE)
    return [label or instruction for label, instruction in found if instruction != "NOP"]


def _between_branches(
    lines: Sequence[str], load_bits: Callable[[str], int]
) -> tuple[Code, Code | None, tuple[Code, ...], Nests]:
    """The whole, of the loops that hold no other the longest that loads, those around it, and the outermost: all from a label to the last branch back to it."""
    starts: dict[str, int] = {}
    ends: dict[int, int] = {}
    bits: list[int] = []
    for line in map(str.strip, lines):
        if label := re.match(r"([.$\w]+):(?:\s|$)", line):
            starts[label[1]] = len(bits)
        elif re.match(r"(@!?%?\w+\s+)?[A-Za-z].*", line):
            bits.append(load_bits(line))
            target = next((name for name in re.findall(r"[.$\w]+", line) if name in starts), None)
            # The branch to itself after the program's end is no loop.
            if target is not None and starts[target] < len(bits) - 1:
                ends[starts[target]] = len(bits)

    def code(first: int, last: int) -> Code:
        return Code(last - first, tuple(filter(None, bits[first:last])))

    def inside(span: tuple[int, int]) -> list[tuple[int, int]]:
        a, b = span
        return sorted((c, d) for c, d in ends.items() if a <= c and d <= b and (c, d) != span)

    def outermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [span for span in spans if not any(span in inside(other) for other in spans)]

    innermost = [span for span in ends.items() if not inside(span)]
    longest = max(innermost, key=lambda span: _reads_most(code(*span)), default=(0, 0))
    path = [span for span in sorted(ends.items()) if longest in inside(span)] + [longest]
    around = tuple(code(a, c) + code(d, b) for (a, b), (c, d) in pairwise(path))
    nests = tuple(
        (code(*span), tuple(code(*each) for each in outermost(inside(span))))
        for span in outermost(sorted(ends.items()))
    )
    return code(0, len(bits)), code(*longest) if innermost else None, around, nests


def _amd(text: str) -> tuple[Code, Code | None, tuple[Code, ...]]:
    """The whole, of the loops that LLVM's comments call inner the longest that loads, and those around it: a loop's blocks may lie anywhere."""
    block = loop = ""
    loops: dict[str, list[int]] = {}
    inner: set[str] = set()
    parents: dict[str, list[str]] = {}
    whole: list[int] = []
    for line in text.split("\n.Lfunc_end")[0].splitlines():
        code, _, comment = line.partition(";")
        if label := re.match(r"\.L(BB\w+):|; %bb", line):
            block, loop = label[1] or "", ""
        if parent := re.search(r"Parent Loop (\w+)", comment):
            parents.setdefault(block, []).append(parent[1])
        if header := re.search(r"This (Inner )?Loop Header", comment):
            loop = block
            if header[1]:
                inner.add(block)
        elif member := re.search(r"in Loop: Header=(\w+)", comment):
            loop = member[1]
        if re.match(r"\t(?!s_nop)[a-z]\w+", code):
            whole.append(_amd_load_bits(code.strip()))
            loops.setdefault(loop, []).append(whole[-1])
    as_code = lambda bits: Code(len(bits), tuple(filter(None, bits)))  # noqa: E731
    longest = max(inner, key=lambda name: _reads_most(as_code(loops[name])), default="")
    around = tuple(as_code(loops[name]) for name in parents.get(longest, ()))
    return as_code(whole), as_code(loops[longest]) if inner else None, around


def _sass_load_bits(line: str) -> int:
    found = re.search(r"\bLDG\.([\w.]+)", line)
    if found is None:
        return 0
    width = re.search(r"(?:^|\.)[US]?(8|16|64|128|256)(?:\.|$)", found[1])
    return int(width[1]) if width else 32


def _ptx_load_bits(line: str) -> int:
    found = re.search(r"\bld\.global[.\w:]*?(?:\.v(\d))?\.[bfsu](\d+)\b", line)
    return int(found[1] or 1) * int(found[2]) if found else 0


def _amd_load_bits(line: str) -> int:
    found = re.match(r"(?:global|flat|buffer)_load_(\w+)", line)
    if found is None:
        return 0
    if re.search(r"byte|[iu]8", found[1]):
        return 8
    if re.search(r"short|[iu]16|d16", found[1]):
        return 16
    word = re.search(r"(dwordx|b)(\d+)$", found[1])
    return 32 if word is None else int(word[2]) * (32 if word[1] == "dwordx" else 1)
