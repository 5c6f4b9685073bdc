"""Several threads at once, one thread, a forked data-loader worker, and processes that compile at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

import bilagrid
from bilagrid.cpu._run import Kernel
from tests.processes import python


def problem(seed: int) -> tuple[Tensor, ...]:
    """Large enough for the work to be shared among threads."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(1, 12, 8, 6, 5, generator=generator)
    image = torch.rand(1, 3, 181, 253, generator=generator)
    return grid, image[:, 1], image


def everything(seed: int) -> list[Tensor]:
    """Every operator's value and every gradient."""
    leaves = [t.clone().requires_grad_() for t in problem(seed)]
    grid, guide, image = leaves
    applied = bilagrid.slice_apply(grid, guide, image)
    splatted = bilagrid.splat(image, guide, (8, 60, 50))
    sliced = bilagrid.slice(bilagrid.blur(splatted, 1.0), guide)
    variation = bilagrid.total_variation(grid)
    loss = applied.square().sum() + sliced.square().sum() + variation
    return [applied, splatted, sliced, variation, *torch.autograd.grad(loss, leaves)]


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_number_of_threads_does_not_matter() -> None:
    torch.set_num_threads(1)
    expected = everything(0)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert_same_bits(everything(0), expected)


def test_several_python_threads_at_once() -> None:
    torch.set_num_threads(2)
    expected = [everything(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(everything, [*range(4)] * 3))
    for k, result in enumerate(found):
        assert_same_bits(result, expected[k % 4])


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="no fork on this system: workers are spawned, as other processes are"
)
def test_a_forked_data_loader_worker() -> None:
    """In a process of its own: a fork of the test runner would inherit whatever other tests started."""
    program = """
import torch, bilagrid
from torch.utils.data import DataLoader, Dataset

class Images(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, k):
        image = torch.rand(1, 3, 181, 253, generator=torch.Generator().manual_seed(k)).requires_grad_()
        grid = bilagrid.splat(image, image[:, 0], (8, 6, 5))
        (grad,) = torch.autograd.grad(bilagrid.slice(grid, image[:, 0]).sum(), image)
        return grad[0]

torch.set_num_threads(2)
expected = torch.stack([Images()[k] for k in range(4)])
loader = DataLoader(Images(), batch_size=None, num_workers=2, multiprocessing_context="fork")
torch.testing.assert_close(torch.stack(list(loader)), expected, rtol=0, atol=0)
print("same bits")
"""
    assert python("-W", "ignore", "-c", program).strip() == "same bits"


def _double(start: int, stop: int, values: np.ndarray) -> None:
    for k in range(start, stop):
        values[k] *= 2


def test_builds_for_two_types_share_no_file_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shared index, two processes that compile at once can leave an entry that leads to the other's build."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    kernel = Kernel(_double)
    for count, dtype in enumerate((np.float32, np.float64), 1):
        values = np.ones(3, dtype)
        kernel(3, 3, values)
        assert values.tolist() == [2, 2, 2]
        assert len([*tmp_path.rglob("*.nbi")]) == len([*tmp_path.rglob("*.nbc")]) == count
