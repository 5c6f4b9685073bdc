"""The files that commands read and write: damaged, foreign, replaced, interrupted, or larger than there is room for."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import KINDS, album, load, photograph, save  # isort: skip -- it skips where packages are missing

from bilagrid import images
from bilagrid.__main__ import main
from tests.commands import CommandLine
from tests.processes import launch

run = CommandLine(main)
refused = run.refused


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "half"])
def test_damaged_input(tmp_path, capsys, suffix, damage):
    source = tmp_path / f"in.{suffix}"
    if damage == "half":
        save(source, photograph(200, 300))
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    elif damage != "missing":
        source.write_text("" if damage == "empty" else "no picture at all\n" * 50)
    assert str(source) in refused(capsys, "filter", source, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_wrong_targets(tmp_path, capsys):
    source = save(tmp_path / "in.png", photograph(channels=4))
    (tmp_path / "hard.png").hardlink_to(source)
    for same in (source, tmp_path / "hard.png"):
        assert "is an input" in refused(capsys, "filter", source, same)
        assert "is an input" in refused(capsys, "filter", source, same, "--overwrite")
    assert "unknown output format" in refused(capsys, "filter", source, tmp_path / "out.xyz")
    assert "no alpha" in refused(capsys, "filter", source, tmp_path / "out.jpg")
    assert "no such folder" in refused(capsys, "filter", source, tmp_path / "none" / "out.png")
    assert "OUT is missing" in refused(capsys, "filter", source)
    target = save(tmp_path / "out.png", photograph(8, 8))
    before = target.read_bytes()
    assert "--overwrite" in refused(capsys, "filter", source, target)
    assert target.read_bytes() == before
    assert run("filter", source, target, "--overwrite") == 0
    assert load(target)[0].shape == (60, 80, 4)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError("disk full")])
def test_interruption_leaves_no_half_file(tmp_path, monkeypatch, fault):
    folder = album(tmp_path, "a.png", "b.png", "c.png")
    calls = []

    def failing(number):
        calls.append(number)
        if len(calls) == 2:
            raise fault

    monkeypatch.setattr(images.os, "fsync", failing)
    assert run("filter", folder, tmp_path / "out") == (130 if fault is KeyboardInterrupt else 2)
    assert sorted(os.listdir(tmp_path / "out")) == (["a.png"] if fault is KeyboardInterrupt else ["a.png", "c.png"])


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_encoding(tmp_path, monkeypatch, memory, suffix, kind):
    like = images.read(save(tmp_path / f"in.{suffix}", photograph(kind=kind)))
    monkeypatch.setattr(images, "_MEMORY", memory and images._MEMORY)
    out = tmp_path / f"out.{suffix}"
    images.write(out, like.pixels, like)
    assert np.abs(images.read(out).pixels - like.pixels).mean() <= (0.02 if suffix == "jpg" else 0)
    if suffix != "tif":
        whole, form = out.read_bytes(), images._FORMATS[out.suffix]
        assert [images._whole(whole[:end], form) for end in (0, 99, -1, None)] == [False, False, False, True]


# Without memory libjpeg ends the process.
@pytest.mark.parametrize(("suffix", "memory"), [("png", 1), ("tif", 1), ("jpg", 1), ("png", 0), ("tif", 0)])
def test_no_room(tmp_path, suffix, memory):
    pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3)).astype(np.uint8)
    source, target = save(tmp_path / f"in.{suffix}", noise), tmp_path / f"out.{suffix}"
    options = ("--sigma-space", 4, "--sigma-color", 0.02)
    # Compiles the kernels too, whose files are then not held to the limit.
    assert run("filter", source, target, *options) == 0
    before = target.read_bytes()
    room = len(before) - 50  # All but the end, which is the directory of a TIFF.
    code = (
        "import resource, sys; from bilagrid import images; from bilagrid.__main__ import main;"
        f"images._MEMORY &= {bool(memory)}; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room})); sys.exit(main())"
    )
    process = launch(tmp_path, "-c", code, "filter", source, target, "--overwrite", *options)
    out, message = process.communicate()
    assert (process.returncode, out) == (2, ""), message
    assert message.startswith(f"bilagrid: {target}: cannot be written: ")
    assert message.count("\n") == 1, message
    assert target.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([source.name, target.name])


def test_foreign_profile_is_dropped(tmp_path):
    image = pytest.importorskip("PIL.Image")
    profile = b"".join([bytes(16), b"CMYK", b"Lab ", bytes(12), b"acsp", bytes(160)])
    for suffix in ("jpg", "tif"):
        source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
        image.new("CMYK", (40, 30), (10, 20, 30, 40)).save(source, icc_profile=profile)
        assert run("filter", source, target) == 0
        with image.open(target) as result:
            assert result.mode == "RGB"
            assert "icc_profile" not in result.info


def test_replacing_keeps_mode_and_links(tmp_path, capsys):
    source, secret = save(tmp_path / "in.png", photograph()), save(tmp_path / "secret.png", photograph(8, 8))
    secret.chmod(0o640)
    link, dangling = tmp_path / "link.png", tmp_path / "dangling.png"
    link.symlink_to(secret)
    dangling.symlink_to(tmp_path / "nothing.png")
    assert "exists" in refused(capsys, "filter", source, dangling)
    for target, file in ((link, secret), (dangling, tmp_path / "nothing.png")):
        assert run("filter", source, target, "--overwrite") == 0
        assert target.is_symlink()
        assert load(file)[0].shape == (60, 80, 3)
    assert secret.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "nothing.png").stat().st_mode == source.stat().st_mode
    os.mkfifo(tmp_path / "fifo.png")
    assert "is not a file" in refused(capsys, "filter", source, tmp_path / "fifo.png", "--overwrite")


def test_long_name(tmp_path):
    name = "n" * 245 + ".png"
    assert run("filter", save(tmp_path / "in.png", photograph()), tmp_path / name) == 0
    assert sorted(os.listdir(tmp_path)) == ["in.png", name]


def test_bad_files_do_not_stop_the_others(tmp_path, capsys, monkeypatch):
    folder = album(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:3000])
    (folder / "d.png").write_text("no picture at all")
    names = [folder / "a.png", folder / "none.png", folder / "b.png", folder / "c.png", folder / "d.png"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for sources, bad in (([folder], ["b.png", "d.png"]), (names, ["none.png", "b.png", "d.png"])):
        out = tmp_path / f"out{len(bad)}"
        assert run("filter", *sources, out) == 2
        done = capsys.readouterr()
        assert sorted(os.listdir(out)) == ["a.png", "c.png"]
        assert f"wrote 2 of {2 + len(bad)} pictures" in done.out
        assert "100%" in done.err
        failures = [line for line in done.err.splitlines() if line.startswith("bilagrid: ")]
        assert [Path(line.split(": ")[1]).name for line in failures] == bad
        assert all(done.err.count(name) == 1 for name in bad)


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_picture_beyond_memory(tmp_path, capsys, monkeypatch, fault):
    folder = album(tmp_path, "a.png", "b.png")
    read = images.read

    def run_out(path):
        if path.name == "a.png":
            raise fault
        return read(path)

    monkeypatch.setattr(images, "read", run_out)
    assert "not enough memory for this picture" in refused(capsys, "filter", folder / "a.png", tmp_path / "a.png")
    assert "a.png: not enough memory for this picture" in refused(capsys, "filter", folder, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["b.png"]
