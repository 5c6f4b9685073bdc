"""The base of every differentiable operator."""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers


class Function(torch.autograd.Function):
    """An `autograd.Function` with a vmap rule, whose ``apply`` is cheap and takes positional arguments only."""

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """As torch's, but without binding the arguments to the signature of ``forward``, which costs time and would only fill in defaults."""
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.skip_frame("what broke a graph runs as it is")
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]
