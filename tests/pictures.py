"""Picture files for the tests of command lines, written and read without the code under test, and processes that run one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

oiio = pytest.importorskip("OpenImageIO")
data = pytest.importorskip("skimage.data")
pytest.importorskip("tyro")
pytest.importorskip("tqdm")


def photograph(height=60, width=80, channels=3, kind="uint8"):
    values = data.coffee()[100 : 100 + height, 150 : 150 + width].astype(np.float64) / 255
    values = {1: values[..., 1:2], 3: values}[min(channels, 3) if channels > 2 else 1]
    if channels in (2, 4):
        alpha = np.broadcast_to(np.linspace(0, 1, width)[None, :, None], (height, width, 1))
        values = np.concatenate([values, alpha], axis=2)
    if kind == "float":
        return values.astype(np.float32)
    return np.rint(values * np.iinfo(kind).max).astype(kind)


def save(path, values, **attributes):
    kind = {"float32": "float"}.get(str(values.dtype), str(values.dtype))
    spec = oiio.ImageSpec(values.shape[1], values.shape[0], values.shape[2], kind)
    if values.shape[2] in (2, 4):
        spec.alpha_channel = values.shape[2] - 1
        spec.attribute("oiio:UnassociatedAlpha", 1)
    for name, value in attributes.items():
        spec.attribute(name, value)
    file = oiio.ImageOutput.create(str(path))
    assert file.open(str(path), spec)
    assert file.write_image(np.ascontiguousarray(values))
    assert file.close()
    return path


def load(path):
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    file = oiio.ImageInput.open(str(path), config)
    assert file, oiio.geterror()
    return np.asarray(file.read_image(oiio.UNKNOWN)).reshape(file.spec().height, file.spec().width, -1), file.spec()


def launch(folder, *command):
    """The command line in a process of its own."""
    # Other tests set the interpreter, in which a photograph takes minutes.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    # A background job of a shell ignores Ctrl-C, and so would all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=folder, env=environment, **pipes)
