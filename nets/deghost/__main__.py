"""The command line: ``python -m nets.deghost merge | train | eval``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from bilagrid import commands

try:
    from nets.deghost.evaluate import evaluate
    from nets.deghost.merge import merge
    from nets.deghost.train import train
except ImportError as error:
    print(f'bilagrid: {error}: python -m pip install -c constraints.txt -e ".[nets]"', file=sys.stderr)
    sys.exit(2)

_COMMANDS: dict[str, Callable[..., None]] = {"merge": merge, "train": train, "eval": evaluate}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 refused, 130 interrupted."""
    description = "Merge photographs of several exposures of a scene that moves into one of high dynamic range."
    return commands.run("python -m nets.deghost", description, _COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
