"""The command line: ``python -m nets.hdrnet train | enhance | eval | diagnose | export | photographs``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from bilagrid import commands

try:
    from nets.hdrnet.diagnose import diagnose
    from nets.hdrnet.enhance import enhance
    from nets.hdrnet.evaluate import evaluate
    from nets.hdrnet.export import export
    from nets.hdrnet.photographs import photographs
    from nets.hdrnet.train import train
except ImportError as error:
    print(f'bilagrid: {error}: python -m pip install -c constraints.txt -e ".[nets]"', file=sys.stderr)
    sys.exit(2)

_COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "enhance": enhance,
    "eval": evaluate,
    "diagnose": diagnose,
    "export": export,
    "photographs": photographs,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 refused, 130 interrupted."""
    description = "HDRNet: learn a photographic look from pairs of pictures, and apply it at any size."
    return commands.run("python -m nets.hdrnet", description, _COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
