"""What every differentiable operator is."""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers


class Function(torch.autograd.Function):
    """An `autograd.Function` that vmap maps by itself, and whose ``apply`` takes positional arguments and is cheap."""

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Torch's, less what it does first at every call: bind the arguments to the signature of ``forward``, to fill in defaults that there are none of."""
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.skip_frame("what broke a graph runs as it is")
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]
