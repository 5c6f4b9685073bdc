"""``python -m nets.deghost train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from bilagrid.commands import Refusal
from nets import training
from nets.deghost.bilateral import BilateralDeghost
from nets.deghost.data import Patches, Scenes
from nets.deghost.generator import Generated, Photographs
from nets.deghost.model import DeghostNet
from nets.deghost.radiance import compressed, loss
from nets.deghost.shipped import load
from nets.training import Schedule

# As published, but for the length: 200 000 steps of 16 patches go about 20 times over all patches of Kalantari's 74 scenes.
_PUBLISHED = Schedule(steps=200_000, batch=16, lr=2e-4, weight_decay=0.0, workers=8)
_BETAS = (0.5, 0.999)


def train(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA [DATA ...] RUN")],
    *,
    generate: bool = False,
    variant: Literal["resnet", "unet"] = "resnet",
    width: int = 64,
    reduce: int = 1,
    start: str | None = None,
    crop: int = 256,
    align: Literal["homography", "flow", "none"] = "homography",
    schedule: Annotated[Schedule, tyro.conf.arg(name="")] = _PUBLISHED,
    resume: bool = False,
) -> None:
    """Learn to merge three exposures of scenes that move.

    DATA are folders of scenes as published by Kalantari and Ramamoorthi, Wu et al., Tel et al. (SCTNet) or NTIRE 2021; or, with --generate, photographs and
    folders of them, from which moving brackets are generated on the fly. RUN is a folder for model.safetensors, the checkpoint and the log (tensorboard
    --logdir RUN).

    To try:

    python -m nets.deghost train Training run
        learns from Kalantari's scenes as the published network did

    python -m nets.deghost train photos run --generate --width 16 --crop 128 --batch 4 --steps 5000
        a small network, from photographs alone

    python -m nets.deghost train Training run --reduce 4 --crop 512
        a network that looks at exposures a quarter as wide and high

    python -m nets.deghost train Training run --start deghost --lr 1e-4
        goes on from the model that comes along

    python -m nets.deghost train Training run2 --reduce 4 --crop 512 --start run/model.safetensors
        a network that has learned at full size learns to be carried there

    python -m nets.deghost train Training run --resume
        goes on after Ctrl-C, to the same weights as without it

    torchrun --nproc-per-node 4 -m nets.deghost train Training run
        on four GPUs; the batch is that of all together

    Args:
        paths: scenes or photographs, and the folder of the run.
        generate: generate brackets from photographs.
        variant: resnet, the better one, or unet.
        width: channels of the first layer; the published network has 64.
        reduce: shrink exposures by this factor for the network, and carry its result to full size by affine maps in a bilateral grid; python -m
            perf.deghost tells what that saves and loses.
        start: weights to go on from: what train wrote, or the model that comes along, deghost; variant and width are then theirs. For --reduce, weights
            trained without it will do.
        crop: side of the patches, in pixels; smaller where a scene is smaller.
        align: how exposures of scenes are aligned to the middle one, as in merge; generated ones are aligned already, but for a small rest.
        resume: go on with the run in RUN.
    """
    if len(paths) < 2:
        raise Refusal("RUN is missing: train DATA RUN")
    *sources, out = paths
    schedule.check()
    if crop < 16 or reduce < 1:
        raise Refusal(f"--crop must be at least 16 and --reduce at least 1, got {crop} and {reduce}")
    training.start_processes()
    data: Generated | Patches
    settings: dict[str, object] = {"generate": generate}
    if generate:
        photographs = Photographs(sources)
        names, side = photographs.names, crop
        data = Generated(photographs, side, schedule.seed)
    else:
        scenes = Scenes(sources, align)
        settings["align"] = align
        names, side = scenes.names, min(crop, *(min(size) for size in scenes.sizes))
        data = Patches(scenes, side, schedule.seed)
        if side < crop and not resume:
            training.say(f"patches are {side}x{side}, as large as the smallest scene lets them be")
        if schedule.workers:
            # Before the workers are forked, which then share it.
            scenes.preload()
    torch.manual_seed(schedule.seed)
    net = _made(DeghostNet(variant=variant, width=width), reduce) if start is None else _started(start, reduce)
    settings |= {"crop": side, "scenes": names} | ({} if start is None else {"start": start})
    training.train(net, data, out, schedule, settings, resume=resume, betas=_BETAS, loss=loss, show=_show)
    model = out / training.MODEL
    training.say(f"wrote {model}; measure it: python -m nets.deghost eval DATA --weights {model}")


def _made(whole: DeghostNet, reduce: int) -> DeghostNet | BilateralDeghost:
    return whole if reduce == 1 else BilateralDeghost(whole, reduce=reduce)


def _started(start: str, reduce: int) -> DeghostNet | BilateralDeghost:
    """A network to go on from, wrapped if it is to be reduced and was not."""
    net = load(start)
    if isinstance(net, DeghostNet):
        return _made(net, reduce)
    if reduce not in (1, net.config["reduce"]):
        raise Refusal(f"--start {start}: was trained with --reduce {net.config['reduce']}, got --reduce {reduce}")
    return net


def _show(batch: tuple[Tensor, ...], result: Tensor) -> Tensor:
    """The exposures, the result and the truth of up to four items, a row each: ``(3, H, W)``."""
    ldr, _, truth = (tensor[:4].cpu() for tensor in batch)
    columns = [*ldr.unbind(1), compressed(result[:4].float().cpu()), compressed(truth)]
    return torch.cat([torch.cat(list(column), 1) for column in columns], 2)
