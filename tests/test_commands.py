"""What the command lines share: folders to write to, names of files, and terminals."""

import os
import sys
from pathlib import Path

import pytest

from tests.pictures import album  # isort: skip -- it skips where packages are missing

from bilagrid import images
from bilagrid.__main__ import main
from tests.commands import CommandLine
from tests.processes import attempt

run = CommandLine(main)
refused = run.refused


@pytest.fixture
def folder(tmp_path):
    return album(tmp_path, "a.png", "b.png")


def test_a_closed_folder_is_told_before_any_work(tmp_path, folder, capsys, monkeypatch):
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(images, "read", lambda path: pytest.fail(f"{path} is read"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and access(path, mode))
    for out in (tmp_path / "closed", tmp_path / "closed" / "new" / "newer"):
        assert "closed: may not be written to, choose another folder" in refused(capsys, "filter", folder, out)
    assert "a.png: must be a folder to hold out, is none" in refused(capsys, "filter", folder, folder / "a.png" / "out")


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are Unicode there")
def test_names_of_other_encodings(tmp_path, folder):
    name = os.fsdecode(b"M\xf6we.png")
    (folder / "a.png").rename(folder / name)
    done = attempt("-m", "bilagrid", "filter", folder, tmp_path / "out")
    assert done.returncode == 2
    assert "we.png: cannot be read: its name is not in UTF-8, rename it\n" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "out") == ["b.png"]
    done = attempt("-m", "bilagrid", "filter", folder / "b.png", tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / name).exists()


def test_help_is_broken_where_the_terminal_ends(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "240")
    with pytest.raises(SystemExit):
        run("filter", "--help")
    help_ = capsys.readouterr().out
    assert "0.05 keeps faint edges, 0.1 is usual, 0.3 blurs most of them. (default: 0.1)" in help_
    assert "\n    filters a photograph that comes with scikit-image" in help_


def test_signs_that_the_terminal_lacks_end_no_work(tmp_path, folder):
    done = attempt("-m", "bilagrid", "filter", folder / "a.png", tmp_path / "Möwe.png", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {tmp_path}/M?we.png\n"
    assert (tmp_path / "Möwe.png").exists()
