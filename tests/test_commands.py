"""What the command lines share: folders to write to, names of files, and terminals."""

import os
import sys
from pathlib import Path

import pytest

from tests.pictures import photograph, save  # isort: skip -- it skips where packages are missing

from bilagrid import images
from bilagrid.__main__ import main
from tests.commands import CommandLine
from tests.processes import attempt

run = CommandLine(main)
refused = run.refused


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        save(folder / name, photograph())
    return folder


def test_a_closed_folder_is_told_before_any_work(tmp_path, album, capsys, monkeypatch):
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(images, "read", lambda path: pytest.fail(f"{path} is read"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and access(path, mode))
    for out in (tmp_path / "closed", tmp_path / "closed" / "new" / "newer"):
        assert "closed: may not be written to, choose another folder" in refused(capsys, "filter", album, out)
    assert "a.png: must be a folder to hold out, is none" in refused(capsys, "filter", album, album / "a.png" / "out")


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are Unicode there")
def test_names_of_other_encodings(tmp_path, album):
    name = os.fsdecode(b"M\xf6we.png")
    (album / "a.png").rename(album / name)
    done = attempt("-m", "bilagrid", "filter", album, tmp_path / "out")
    assert done.returncode == 2
    assert "we.png: cannot be read: its name is not in UTF-8, rename it\n" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "out") == ["b.png"]
    done = attempt("-m", "bilagrid", "filter", album / "b.png", tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / name).exists()


def test_help_is_broken_where_the_terminal_ends(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "240")
    with pytest.raises(SystemExit):
        run("filter", "--help")
    help_ = capsys.readouterr().out
    assert "0.05 keeps faint edges, 0.1 is usual, 0.3 blurs most of them. (default: 0.1)" in help_
    assert "\n    filters a photograph that comes with scikit-image" in help_


def test_signs_that_the_terminal_lacks_end_no_work(tmp_path, album):
    done = attempt("-m", "bilagrid", "filter", album / "a.png", tmp_path / "Möwe.png", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {tmp_path}/M?we.png\n"
    assert (tmp_path / "Möwe.png").exists()
