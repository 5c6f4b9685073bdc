"""HDRNet's command line on real photographs, as a user runs it."""

import os
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch

from tests.pictures import data, load, photograph, save  # isort: skip -- it skips where packages are missing

pytest.importorskip("safetensors")
pytest.importorskip("ignite")
safetensors = pytest.importorskip("safetensors.torch")


from bilagrid import images  # noqa: E402
from nets import hdrnet  # noqa: E402
from nets.hdrnet import enhance as enhancing  # noqa: E402
from nets.hdrnet.__main__ import main  # noqa: E402
from nets.hdrnet.data import Photographs  # noqa: E402
from nets.hdrnet.operators import OPERATORS  # noqa: E402
from nets.weights import save_network  # noqa: E402
from tests.commands import CommandLine  # noqa: E402
from tests.processes import end, launch, wait_until  # noqa: E402

# A network and crops so small that a step takes milliseconds.
SMALL = ("--input-size", 32, "--spatial-bins", 4, "--luma-bins", 4, "--crop", 32, "--workers", 0, "--lr", 1e-3)


run = CommandLine(main, quiet=False)
refused = run.refused


@pytest.fixture
def pairs(tmp_path):
    """Pairs of real photographs of several sizes and depths, by a gamma."""
    folder = tmp_path / "pairs"
    for side in ("input", "output"):
        (folder / side).mkdir(parents=True)
    for name, kind, size in (
        ("a.png", "uint8", (48, 60)),
        ("b.tif", "uint16", (80, 44)),
        ("c.png", "uint16", (64, 64)),
    ):
        before = photograph(*size, kind=kind)
        top = np.iinfo(kind).max
        after = np.rint((before / top) ** 0.5 * top).astype(kind)
        save(folder / "input" / name, before)
        save(folder / "output" / name.replace("b.tif", "b.png"), after)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "chelsea"):
        save(folder / f"{name}.png", np.ascontiguousarray(getattr(data, name)()[:90, :100]))
    return folder


@pytest.fixture
def model(tmp_path):
    """An untrained network that changes pictures."""
    torch.manual_seed(0)
    net = hdrnet.HDRNet(input_size=32, spatial_bins=4, luma_bins=4)
    with torch.no_grad():
        net.head.weight.mul_(20)
    save_network(tmp_path / "net.safetensors", net)
    return tmp_path / "net.safetensors"


def furthest(one, other):
    """The largest difference between two files of tensors, and how far the first went from its beginning, in steps of the learning rate."""
    one, other = safetensors.load_file(one), safetensors.load_file(other)
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def test_train_on_pairs_then_enhance_and_measure(tmp_path, pairs, capsys):
    out = tmp_path / "run"
    assert run("train", pairs, out, *SMALL, "--steps", 60, "--log-every", 10) == 0
    assert {"model.safetensors", "state.safetensors"} <= set(os.listdir(out))
    assert any(name.startswith("events.out") for name in os.listdir(out))
    weights = out / "model.safetensors"
    assert run("enhance", pairs / "input", tmp_path / "made", "--weights", weights) == 0
    assert sorted(os.listdir(tmp_path / "made")) == ["a.png", "b.tif", "c.png"]
    capsys.readouterr()
    table, sheet = tmp_path / "table.csv", tmp_path / "sheet.png"
    assert run("eval", pairs, "--weights", weights, "--table", table, "--sheet", sheet) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[1::2] == ["identity", "affine", "model", "oracle"] * 2
    mean = dict(
        zip(table.read_text().splitlines()[0].split(","), table.read_text().splitlines()[-1].split(","), strict=True)
    )
    assert float(mean["psnr model"]) > float(mean["psnr identity"]) + 3
    assert float(mean["psnr oracle"]) > float(mean["psnr affine"]) + 3
    assert load(sheet)[0].shape[2] == 3
    assert f"wrote {table}" in lines
    assert "exists" in refused(capsys, "eval", pairs, "--weights", weights, "--table", table)
    radiance = tmp_path / "sheet.exr"
    assert "unknown output format '.exr'" in refused(capsys, "eval", pairs, "--weights", weights, "--sheet", radiance)


def test_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path, pairs):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("train", pairs, whole, *SMALL, "--steps", 9) == 0
    assert run("train", pairs, parts, *SMALL, "--steps", 4) == 0
    assert run("train", pairs, parts, *SMALL, "--steps", 9, "--resume", "--workers", 1) == 0
    for name in ("model.safetensors", "state.safetensors"):
        assert furthest(whole / name, parts / name) == 0


def test_interrupted_run_goes_on(tmp_path, pairs):
    out = tmp_path / "run"
    options = ("train", pairs, out, *SMALL, "--log-every", 1)
    with launch(tmp_path, "-m", "nets.hdrnet", *options, "--steps", 100000, "--save-every", 1) as process:
        wait_until((out / "state.safetensors").exists, process)
        process.send_signal(signal.SIGINT)
        text, message = end(process)
    assert process.returncode == 130, message
    assert "--resume goes on from there" in text
    step = int(text.split("at step ")[1].split(";")[0])
    assert run(*options, "--steps", step + 2, "--resume") == 0


def test_two_processes_learn_what_one_does(tmp_path, pairs):
    options = (*SMALL, "--steps", 6, "--batch", 4, "--lr", 1e-4)
    assert run("train", pairs, tmp_path / "one", *options) == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    with launch(tmp_path, *torchrun, "-m", "nets.hdrnet", "train", pairs, tmp_path / "two", *options) as process:
        message = end(process)[1]
    assert process.returncode == 0, message
    one, two = (safetensors.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        # Adam moves a weight by up to the learning rate a step, whatever its gradient's size: rounding shows where a gradient is all but 0.
        difference = (tensor - two[name]).abs()
        assert difference.max() <= 6e-4, name
        assert difference.mean() < 1e-6, name


def test_train_on_photographs_with_operators(tmp_path, photos):
    for operator in ("tone", "clahe", "contrast", "shadows"):
        assert (
            run("train", photos, tmp_path / operator, *SMALL, "--steps", 2, "--operator", operator, "--variants", 2)
            == 0
        )
    before = save(tmp_path / "before.png", photograph())
    after = save(tmp_path / "after.png", 255 - photograph())
    assert run("train", photos, tmp_path / "look", *SMALL, "--steps", 2, "--look", before, after) == 0
    from nets.hdrnet.operators import look

    negative = look(images.read(before).pixels, images.read(after).pixels)
    other = images.scaled(data.chelsea()[:50, :60])
    assert np.abs(negative(other) - (1 - other)).mean() < 0.02


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_enhance_keeps_depth_alpha_and_metadata(tmp_path, model, kind, channels):
    values = photograph(channels=channels, kind=kind)
    source, target = save(tmp_path / "in.tif", values, Artist="somebody", Orientation=1), tmp_path / "out.tif"
    assert run("enhance", source, target, "--weights", model) == 0
    result, spec = load(target)
    assert result.dtype == values.dtype
    assert result.shape == values.shape
    assert spec.getattribute("Artist") == "somebody"
    if channels in (2, 4):
        np.testing.assert_array_equal(result[..., -1], load(source)[0][..., -1])
    colours = 3 if channels > 2 else 1
    assert (result[..., :colours] != values[..., :colours]).any()


@pytest.mark.parametrize("levels", [1, 3])
def test_strips_make_the_picture_that_the_network_makes_whole(monkeypatch, levels):
    torch.manual_seed(0)
    net = hdrnet.HDRNet(input_size=64, levels=levels).eval()
    with torch.no_grad():
        net.head.weight.mul_(30)
    values = data.coffee()[:203, :150]
    monkeypatch.setattr(enhancing, "_STRIP", 150 * 16)
    made = enhancing.apply(net, values, np.dtype(np.float32))
    with torch.no_grad():
        whole = net(torch.from_numpy(images.scaled(values)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(made, whole, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_large_picture_in_bounded_memory(tmp_path, model):
    """Fifty megapixels take little more than the two pictures at their own depth."""
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; from nets.hdrnet import load; from nets.hdrnet.enhance import apply;"
        f"net = load(Path({str(model)!r})); values = np.zeros((5000, 10000, 3), np.uint8); values[::3] = 100;"
        "apply(net, values[:64], values.dtype); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "apply(net, values, values.dtype); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    with launch(tmp_path, "-c", code) as process:
        out, message = end(process)
    assert process.returncode == 0, message
    assert int(out) * 1024 < 6 * 150e6


def test_enhance_goes_on_where_it_stopped_and_is_shared_out(tmp_path, model, photos, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run("enhance", photos, out, "--weights", model) == 0
    assert os.listdir(out) == ["chelsea.png"]
    done = (out / "chelsea.png").stat().st_mtime_ns
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert run("enhance", photos, out, "--weights", model) == 0
    assert sorted(os.listdir(out)) == ["astronaut.png", "chelsea.png"]
    assert (out / "chelsea.png").stat().st_mtime_ns == done
    assert "1 file exists and is left as it is" in capsys.readouterr().err
    assert "--overwrite" in refused(capsys, "enhance", photos / "chelsea.png", out / "chelsea.png", "--weights", model)


@pytest.mark.parametrize(
    "guide", ["curves", *(pytest.param(guide, marks=pytest.mark.slow) for guide in ("pointwise", "luma"))]
)
def test_exported_network_gives_the_same(tmp_path, guide):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = hdrnet.HDRNet(guide=guide, input_size=64).eval()
    with torch.no_grad():
        net.head.weight.mul_(30)
    save_network(tmp_path / "net.safetensors", net)
    assert run("export", tmp_path / "net.onnx", "--weights", tmp_path / "net.safetensors") == 0
    image = torch.rand(1, 3, 71, 95)
    (found,) = runtime.InferenceSession(tmp_path / "net.onnx").run(None, {"image": image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, net(image).numpy(), rtol=0, atol=1e-4)


def test_bad_weights_are_refused(tmp_path, model, capsys):
    source, out = save(tmp_path / "in.png", photograph()), tmp_path / "out.png"
    whole = model.read_bytes()
    for data_, expected in (
        (b"", "cannot be read as safetensors"),
        (whole[:100], "cannot be read as safetensors"),
        (whole[:-40], "cannot be read as safetensors"),
        (b"\x80\x04not a pickle that anyone loads", "cannot be read as safetensors"),
    ):
        model.write_bytes(data_)
        assert expected in refused(capsys, "enhance", source, out, "--weights", model)
    tensors = {"a": torch.zeros(2)}
    safetensors.save_file(tensors, model)
    assert "expected a file that holds 'HDRNet', got None" in refused(
        capsys, "enhance", source, out, "--weights", model
    )
    net = hdrnet.HDRNet(input_size=32, spatial_bins=4)
    for name, value in (("luma_bins", 4), ("channel_multiplier", 10**4), ("input_size", 2**20)):
        net.config = hdrnet.HDRNet(input_size=32, spatial_bins=4).config | {name: value}
        save_network(model, net)
        assert "does not fit HDRNet" in refused(capsys, "enhance", source, out, "--weights", model)
    net.config["channel_multiplier"] = 10**7
    save_network(model, net)
    assert "holds no arguments that HDRNet takes" in refused(capsys, "enhance", source, out, "--weights", model)
    net = hdrnet.HDRNet(input_size=32, spatial_bins=4)
    torch.nn.init.constant_(net.head.weight, float("nan"))
    save_network(model, net)
    assert "not finite" in refused(capsys, "enhance", source, out, "--weights", model)
    assert "no such file" in refused(capsys, "enhance", source, out, "--weights", tmp_path / "none.safetensors")
    assert not out.exists()


def test_bad_pairs_are_refused_before_any_work(tmp_path, pairs, capsys):
    out = tmp_path / "run"
    shutil.copy(pairs / "input" / "a.png", pairs / "input" / "d.png")
    assert "1 file of 4 and 3 has no partner: d" in refused(capsys, "train", pairs, out, *SMALL)
    save(pairs / "output" / "d.png", photograph(10, 12))
    assert "must be as large as" in refused(capsys, "train", pairs, out, *SMALL)
    (pairs / "output" / "d.png").write_text("no picture")
    assert "d.png: cannot be read" in refused(capsys, "train", pairs, out, *SMALL)
    assert "no such folder" in refused(capsys, "train", tmp_path / "none", out, *SMALL)
    assert "RUN is missing" in refused(capsys, "train", pairs)
    save(pairs / "output" / "d.png", load(pairs / "input" / "d.png")[0])
    shutil.copy(pairs / "input" / "a.png", pairs / "input" / "a.tif")
    message = refused(capsys, "train", pairs, out, *SMALL)
    assert "a.png and " in message
    assert "a.tif: have one name, suffixes aside" in message
    (pairs / "input" / "a.tif").unlink()
    assert "--variants needs --operator" in refused(capsys, "train", pairs, out, "--variants", 3)
    assert "photographs need --operator or --look" in refused(capsys, "train", pairs, pairs, out)
    for photographs in (pairs / "input", pairs / "input" / "a.png"):
        message = refused(capsys, "train", photographs, out)
        assert f"{photographs}: holds no folders input and output; photographs alone need --operator or" in message
    assert not out.exists()


def test_radiance_is_not_enhanced(tmp_path, model, capsys):
    source = save(tmp_path / "in.exr", 30 * photograph(kind="float"))
    message = refused(capsys, "enhance", source, tmp_path / "out.exr", "--weights", model)
    assert "in.exr: holds values from 0 to" in message
    assert not (tmp_path / "out.exr").exists()


def test_pictures_too_small_are_refused(tmp_path, capsys):
    tiny = save(tmp_path / "tiny.png", photograph(8, 40))
    assert "at least 16x16 to learn from" in refused(capsys, "train", tiny, tmp_path / "run", "--operator", "tone")
    assert not (tmp_path / "run").exists()


def test_a_run_is_neither_lost_nor_mixed_up(tmp_path, photos, capsys):
    out = tmp_path / "run"
    options = ("train", photos, out, *SMALL, "--operator", "tone")
    assert run(*options, "--steps", 2) == 0
    assert "holds a run; --resume goes on with it" in refused(capsys, *options)
    assert "has 2 steps already; raise --steps" in refused(capsys, *options, "--steps", 2, "--resume")
    assert "operator = tone" in refused(capsys, "train", photos, out, *SMALL, "--operator", "clahe", "--resume")
    assert "seed = 0" in refused(capsys, *options, "--seed", 1, "--resume")
    assert "guide = curves" in refused(capsys, *options, "--guide", "luma", "--resume")
    assert "is not finite" not in refused(capsys, *options, "--steps", 0)
    for k in range(100):
        shutil.copy(photos / "chelsea.png", photos / f"{k}.png")
    assert len(refused(capsys, *options, "--resume")) < 500
    assert "must be a folder to hold the run" in refused(capsys, *options[:2], photos / "chelsea.png", *options[3:])
    (out / "state.safetensors").write_bytes(b"half")
    assert "cannot be read as safetensors" in refused(capsys, *options, "--resume")


def test_a_checkpoint_is_never_of_weights_that_are_not_finite(tmp_path, photos, capsys, monkeypatch):
    class Diverging(torch.optim.Adam):
        def step(self, *_):
            for weight in self.param_groups[0]["params"]:
                weight.data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim, "Adam", Diverging)
    out = tmp_path / "run"
    options = ("train", photos, out, *SMALL, "--operator", "tone", "--steps", 1)
    assert "the weights are no longer finite at step 1" in refused(capsys, *options)
    assert not list(out.glob("*.safetensors"))


def test_one_crop_is_not_normalised(tmp_path, photos, capsys):
    options = ("train", photos, tmp_path / "run", *SMALL, "--operator", "tone", "--batch-norm", "--steps", 1)
    assert "--batch-norm needs --batch of at least 2" in refused(capsys, *options, "--batch", 1)
    assert run(*options, "--batch", 2) == 0


def test_a_refusal_while_training_is_one_line(tmp_path, photos, monkeypatch, capfd):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("nets.training.weights.save_network", fail)
    options = ("train", photos, tmp_path / "run", *SMALL, "--operator", "tone", "--steps", 1)
    assert run(*options) == 2
    message = capfd.readouterr().err
    assert "bilagrid: disk full" in message
    assert "terminating" not in message


def test_look_of_pictures_that_differ_in_kind_or_size(tmp_path, photos, capsys):
    before, after = save(tmp_path / "before.png", photograph(40, 50, channels=1)), photos / "chelsea.png"
    options = ("train", photos, tmp_path / "run", *SMALL, "--steps", 1, "--look", before)
    assert "must be of one size" in refused(capsys, *options, after)
    assert run(*options, save(tmp_path / "after.png", photograph(40, 50))) == 0


def test_floats_beyond_0_and_1_are_photographs_too(tmp_path):
    save(tmp_path / "float.tif", photograph(40, 50, kind="float") * 1.5 - 0.2)
    source = Photographs([tmp_path], OPERATORS["clahe"], variants=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(np.ptp(values) > 0 for k in range(3) for values in source.pair(0, k))


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (9, 7)])
def test_small_pictures_are_measured(tmp_path, size, capsys):
    source = save(tmp_path / "in.png", photograph(*size))
    assert run("eval", source, "--operator", "tone", "--weights", "tone") == 0
    assert run("diagnose", source, "--operator", "tone") == 0
    assert "nan" not in capsys.readouterr().out


def test_networks_that_do_not_make_pictures_of_pictures_are_refused(tmp_path, photos, capsys):
    weights = tmp_path / "gray.safetensors"
    save_network(weights, hdrnet.HDRNet(in_channels=1, out_channels=1, input_size=32, spatial_bins=4))
    message = "takes 1 channels and gives 1, pictures have 3"
    assert message in refused(capsys, "enhance", photos, tmp_path / "out", "--weights", weights)
    assert message in refused(capsys, "eval", photos, "--operator", "tone", "--weights", weights)


@pytest.mark.parametrize("device", ["meta", "mps", "chalk"])
def test_devices_without_kernels_are_refused(tmp_path, photos, capsys, device):
    assert "--device" in refused(capsys, "enhance", photos, tmp_path / "out", "--device", device)


@pytest.mark.parametrize("command", ["train", "enhance", "eval", "diagnose", "export", "photographs"])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"python -m nets.hdrnet {command}" in text
