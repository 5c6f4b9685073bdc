"""A dictionary of sliced colours and their maps, which computes the maps on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

# dict beside MutableMapping, whose methods go through those below, is more than a type checker can follow.
_dict: Any = dict


class Sliced(MutableMapping, dict):  # type: ignore[misc,type-arg,metaclass]
    """What `bilagrid.compat.gsplat.slice` returns. The maps, 12 numbers per pixel that most callers do not use, are computed when they are first read."""

    _MAPS = "rgb_affine_mats"

    def __init__(self, colors: Tensor, maps: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> None:
        _dict.__init__(self, rgb=colors)
        self._maps: Callable[[], Tensor] | None = maps
        self._inputs = [(tensor, tensor._version) for tensor in inputs if not tensor.is_inference()]
        self._grad = torch.is_grad_enabled()

    def __getitem__(self, key: str) -> Tensor:
        if key == self._MAPS and self._maps is not None:
            if any(tensor._version != version for tensor, version in self._inputs):
                raise RuntimeError(
                    "rgb_affine_mats must be read before the grids, xy or rgb are changed in place, as by an optimizer's step; slice again"
                )
            with torch.set_grad_enabled(self._grad):
                self[key] = self._maps()
        return _dict.__getitem__(self, key)

    def __setitem__(self, key: str, value: Tensor) -> None:
        self._drop(key)
        _dict.__setitem__(self, key, value)

    def __delitem__(self, key: str) -> None:
        if not self._drop(key):
            _dict.__delitem__(self, key)

    def __iter__(self) -> Iterator[str]:
        yield from _dict.__iter__(self)
        if self._maps is not None:
            yield self._MAPS

    def __len__(self) -> int:
        return _dict.__len__(self) + (self._maps is not None)

    def __contains__(self, key: object) -> bool:
        return any(key == own for own in self)

    def copy(self) -> dict[str, Tensor]:
        return _dict(self)

    def __repr__(self) -> str:
        return repr(_dict(self))

    def __reduce__(self) -> Any:
        return dict, (_dict(self),)

    def _drop(self, key: str) -> bool:
        """If ``key`` is that of maps not yet computed, forgets them; whether it was."""
        pending = key == self._MAPS and self._maps is not None
        if pending:
            self._maps, self._inputs = None, []
        return pending
