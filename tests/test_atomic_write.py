"""Files that stand whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from kedge.atomic_write import clear_unfinished, write_atomically


def test_what_stood_there_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / ("long name " * 20)  # as long as a name may be, and a hidden one beside it is no longer
    write_atomically(path, "before\n")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device: '.*long name"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before\n"
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_an_error_names_the_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"page\.html"):
        write_atomically(tmp_path / "file" / "page.html", "text")


def test_what_a_kill_leaves_is_cleared(tmp_path):
    program = "import os, signal, sys\nfrom pathlib import Path\nfrom kedge.atomic_write import write_atomically\n"
    program += "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\nwrite_atomically(Path(sys.argv[1]), 'text')"
    (tmp_path / "mine.partial").touch()
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len([*tmp_path.iterdir()]) == 2
    clear_unfinished(tmp_path)
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.partial"]
