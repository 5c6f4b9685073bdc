"""``python -m nets.hdrnet train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from bilagrid import images
from bilagrid.commands import Refusal
from nets import training
from nets.hdrnet.data import Crops, Pairs, Photographs, Source, colour
from nets.hdrnet.model import HDRNet
from nets.hdrnet.operators import OPERATORS, Operator, look
from nets.training import Schedule

_LEAST_CROP = 16

OperatorName = Literal["tone", "clahe", "contrast", "shadows"]
Look = Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="BEFORE AFTER")]


def train(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA [DATA ...] RUN")],
    *,
    operator: OperatorName | None = None,
    learn_look: Annotated[Look, tyro.conf.arg(name="look")] = None,
    variants: int = 1,
    crop: int = 512,
    channel_multiplier: int = 1,
    luma_bins: int = 8,
    spatial_bins: int = 16,
    input_size: int = 256,
    batch_norm: bool = False,
    guide: Literal["curves", "pointwise", "luma"] = "curves",
    levels: Literal[1, 3] = 1,
    schedule: Annotated[Schedule, tyro.conf.arg(name="")] = Schedule(),  # noqa: B008 -- it is frozen
    resume: bool = False,
) -> None:
    """Learn a photographic look from pictures before and after it.

    DATA is a folder with the folders input and output, whose files have the same names; or, with --operator or --look, photographs and folders of them, to
    which the operator is applied on the fly. RUN is a folder for model.safetensors, the checkpoint and the log (tensorboard --logdir RUN).

    To try:

    python -m nets.hdrnet train pairs run
        learns from pairs/input and pairs/output

    python -m nets.hdrnet train photos run --operator clahe --variants 8
        learns to equalise histograms from photographs alone

    python -m nets.hdrnet train photos run --look before.jpg after.jpg
        learns the colours of one retouched picture

    python -m nets.hdrnet train pairs run --resume
        goes on after Ctrl-C, to the same weights as without it

    torchrun --nproc-per-node 4 -m nets.hdrnet train pairs run --batch 16
        on four GPUs; the batch is that of all together

    Args:
        paths: pairs or photographs, and the folder of the run.
        operator: tone: an S-curve with saturation; clahe: histogram equalisation of luma; contrast: local contrast by
            the bilateral filter; shadows: dark places lifted and light ones held back.
        learn_look: a picture before and after: its look is what is learned.
        variants: with --operator or --look: in how many exposures and white balances each photograph is seen.
        crop: side of the crops, in pixels at full resolution; smaller where a picture is smaller.
        channel_multiplier: width of the network, relative to the published one.
        luma_bins: depth of the grid.
        spatial_bins: rows and columns of the grid.
        input_size: side of the small copy that the network looks at.
        batch_norm: normalise the layers.
        guide: what finds a pixel's place in the grid: learned curves, a small pointwise network, or luma.
        levels: 3 for the Gaussian-pyramid variant.
        resume: go on with the run in RUN.
    """
    if len(paths) < 2:
        raise Refusal("RUN is missing: train DATA RUN")
    *sources, out = paths
    schedule.check()
    if variants < 1 or crop < _LEAST_CROP:
        raise Refusal(f"--variants must be at least 1 and --crop at least {_LEAST_CROP}, got {variants} and {crop}")
    training.start_processes()
    if batch_norm and training.normalised_over(schedule) < 2:
        raise Refusal("--batch-norm needs --batch of at least 2, on a CPU for each process: one crop has no variance")
    source = source_of(sources, operator, learn_look, variants)
    side = min(crop, *(min(size) for size in source.sizes))
    if side < _LEAST_CROP:
        raise Refusal(
            f"pictures must be at least {_LEAST_CROP}x{_LEAST_CROP} to learn from, and one has a side of {side}"
        )
    if side < crop and not resume:
        training.say(f"crops are {side}x{side}, as large as the smallest picture lets them be")
    torch.manual_seed(schedule.seed)
    net = HDRNet(
        channel_multiplier=channel_multiplier,
        luma_bins=luma_bins,
        spatial_bins=spatial_bins,
        input_size=input_size,
        batch_norm=batch_norm,
        guide=guide,
        levels=levels,
    )
    settings = {
        "operator": operator,
        "look": None if learn_look is None else [path.name for path in learn_look],
        "variants": variants,
        "crop": side,
        "pictures": source.names,
    }
    training.train(
        net, Crops(source, side, schedule.seed), out, schedule, settings, resume=resume, show=training.side_by_side
    )
    model = out / training.MODEL
    training.say(f"wrote {model}; use it: python -m nets.hdrnet enhance IN OUT --weights {model}")


def source_of(
    sources: list[Path], operator: OperatorName | None, learn_look: tuple[Path, Path] | None, variants: int = 1
) -> Source:
    """Pairs from one folder, or photographs with an operator."""
    if operator is not None and learn_look is not None:
        raise Refusal("--operator and --look exclude each other")
    if operator is None and learn_look is None:
        if variants != 1:
            raise Refusal("--variants needs --operator or --look: what was done to pairs is not known")
        if len(sources) != 1:
            raise Refusal(f"pairs come from one folder, got {len(sources)}; photographs need --operator or --look")
        return Pairs(sources[0])
    apply: Operator
    if learn_look is None:
        apply = OPERATORS[operator]  # type: ignore[index]
    else:
        before, after = (images.scaled(colour(path)) for path in learn_look)
        if before.shape != after.shape:
            raise Refusal(f"--look: {learn_look[0]} and {learn_look[1]} must be of one size, before and after")
        apply = look(before, after)
    return Photographs(sources, apply, variants)
