"""Picture files for the tests of command lines, written and read without the code under test."""

import numpy as np
import pytest

oiio = pytest.importorskip("OpenImageIO")
data = pytest.importorskip("skimage.data")
pytest.importorskip("tyro")
pytest.importorskip("tqdm")

# Files by suffix and type of their values.
KINDS = [("png", "uint8"), ("png", "uint16"), ("tif", "uint8"), ("tif", "uint16"), ("tif", "float"), ("jpg", "uint8")]


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


def album(tmp_path, *names):
    """A folder of photographs under these names."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        save(folder / name, photograph())
    return folder
