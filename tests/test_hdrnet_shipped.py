"""The models that come along, on photographs that they were not trained on."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("OpenImageIO")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from nets import hdrnet
from nets.hdrnet.data import Photographs
from nets.hdrnet.enhance import apply
from nets.hdrnet.evaluate import global_affine, measure
from nets.hdrnet.operators import OPERATORS


@pytest.mark.parametrize("name", hdrnet.SHIPPED)
def test_beats_the_best_affine_map_of_each_photograph_by_3_db(name, held_out):
    net = hdrnet.load(name)
    makers = {"affine": global_affine, "model": lambda before, after: apply(net, before, np.dtype(np.float32))}
    rows, _ = measure(Photographs([held_out], OPERATORS[name]), makers)
    assert len(rows) == 4
    for row in rows:
        assert row["psnr model"] > row["psnr affine"] + 3, row


def test_three_models_of_under_2_mb_say_how_they_were_made():
    assert hdrnet.SHIPPED == ("contrast", "shadows", "tone")
    for name in hdrnet.SHIPPED:
        path = Path(hdrnet.__file__).parent / "weights" / f"{name}.safetensors"
        assert path.stat().st_size < 2_000_000
        from nets import weights

        _, facts = weights.load(path, "HDRNet")
        assert facts["settings"]["operator"] == name
        assert {"seed", "lr", "batch", "pictures"} <= facts["settings"].keys()
        assert facts["seconds"] > 0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="nor one of the models that come along: contrast, shadows, tone"):
        hdrnet.load("sepia")
