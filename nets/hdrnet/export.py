"""``python -m nets.hdrnet export``: the network as ONNX, with a 5-D GridSample for slicing, for programs without PyTorch."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from bilagrid import commands
from bilagrid.commands import Refusal
from nets.hdrnet.guides import Curves, Luma
from nets.hdrnet.model import HDRNet
from nets.hdrnet.shipped import load
from nets.luma import LUMA

# The first opset with a GridSample of volumes.
_OPSET = 20

# How far onnxruntime may be from torch, at the sizes of image that are tried.
_TOLERANCE = 1e-4
_TRIED = ((1, 300, 401), (2, 256, 128), (1, 67, 90))


def export(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.onnx")],
    *,
    weights: str,
    overwrite: bool = False,
) -> None:
    """Write a model as ONNX, and check it in onnxruntime against torch.

    The file takes "image", float32 (N, 3, H, W) in [0, 1] of any N, H and W, and gives "enhanced", of the same shape and not clipped.

    To try:

    python -m nets.hdrnet export contrast.onnx --weights contrast

    Args:
        out: the file to write.
        weights: what train wrote, or one of the models that come along.
        overwrite: replace the file if it exists.
    """
    commands.check_file(out, (".onnx",))
    commands.unwritten([(Path(), out)], overwrite=overwrite)
    net = load(weights)
    data = to_onnx(net)
    furthest = deviation(net, data)
    if not furthest <= _TOLERANCE:
        raise Refusal(f"{out}: not written: onnxruntime is {furthest:.2g} from torch, more than {_TOLERANCE:.0e}")
    commands.replace(Path(os.path.realpath(out)), data)
    print(f"wrote {out}, {len(data) / 1e6:.1f} MB; onnxruntime is within {furthest:.1e} of torch")


def to_onnx(net: HDRNet) -> bytes:
    """The bytes of an ONNX file that computes what the network does."""
    module = _Plain(net).eval()
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "height", "width"))
    image = torch.rand(2, net.config["in_channels"], 96, 80)
    # The exporter tells of packages that are not installed, and of its own deprecations.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "net.onnx")
        torch.onnx.export(
            module,
            (image,),
            path,
            input_names=["image"],
            output_names=["enhanced"],
            dynamo=True,
            dynamic_shapes=({0: batch, 2: height, 3: width},),
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


def deviation(net: HDRNet, data: bytes) -> float:
    """The largest difference between the ONNX file in onnxruntime and the network, over images of several sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    differences = []
    for batch, height, width in _TRIED:
        image = torch.rand(batch, net.config["in_channels"], height, width)
        (found,) = session.run(None, {"image": image.numpy()})
        with torch.inference_mode():
            differences.append(float(np.abs(found - net(image).numpy()).max()))
    return max(differences)


class _Plain(nn.Module):
    """The network in torch's own operators, without our fused kernels."""

    def __init__(self, net: HDRNet) -> None:
        super().__init__()
        if net.config["levels"] > 1:
            raise Refusal("ONNX export takes networks of one level, not the Gaussian-pyramid variant")
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        grid = self.net.coefficients(self.net.shrink(image))
        guide = _plain_guide(self.net.guide_of(0), image)
        height, width = image.shape[2:]
        # The cell-centred lattice, in the coordinates of GridSample: from -1 to 1, border to border.
        y = ((torch.arange(height, device=image.device) + 0.5) * (2 / height) - 1)[:, None].expand_as(guide)
        x = ((torch.arange(width, device=image.device) + 0.5) * (2 / width) - 1).expand_as(guide)
        places = torch.stack([x, y, 2 * guide - 1], -1).unsqueeze(1)
        maps = F.grid_sample(grid, places, padding_mode="border", align_corners=False)[:, :, 0]
        maps = maps.unflatten(1, (self.net.config["out_channels"], self.net.config["in_channels"] + 1))
        return (maps[:, :, :-1] * image[:, None]).sum(2) + maps[:, :, -1]


def _plain_guide(guide: nn.Module, image: Tensor) -> Tensor:
    if isinstance(guide, Luma):
        red, green, blue = image.unbind(1) if image.shape[1] == 3 else (image[:, 0],) * 3
        return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    if not isinstance(guide, Curves):
        return guide(image)
    colours = F.conv2d(image, guide.matrix[:, :, None, None], guide.bias)
    curved = torch.zeros_like(colours)
    for shift, slope in zip(guide.shifts.unbind(1), guide.slopes.unbind(1), strict=True):
        curved = curved + slope[:, None, None] * torch.relu(colours - shift[:, None, None])
    mixed = F.conv2d(curved, guide.mix[None, :, None, None], guide.mix_bias[None])
    return mixed.clamp(0, 1)[:, 0]
