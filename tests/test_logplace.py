"""Where access lines go: whole, whoever else writes there, and into a new file when the old one is moved away."""

from __future__ import annotations

import fcntl
import os
import select
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.logplace import LogPlace, pieces

LINES = st.lists(st.integers(0, 3 * select.PIPE_BUF), max_size=20).map(
    lambda sizes: b"".join(b"x" * size + b"\n" for size in sizes)
)


@given(LINES)
def test_pieces_are_whole_lines_that_a_pipe_takes_in_one(data: bytes) -> None:
    found = list(pieces(data))
    assert b"".join(found) == data
    for piece in found:
        assert piece.endswith(b"\n")
        assert len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1


def test_the_rest_of_a_line_is_a_piece_too() -> None:
    assert list(pieces(b"a\nb")) == [b"a\nb"]
    assert list(pieces(b"a" * 10_000)) == [b"a" * 10_000]
    assert list(pieces(b"")) == []


def test_a_file_is_made_readable_for_its_group_alone_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for text in ("one\n", "two\n"):
        place = LogPlace(str(path))
        place.write(text)
        place.flush()
        assert not place.terminal
        place.close()
        place.close()
    assert path.read_text() == "one\ntwo\n"
    assert path.stat().st_mode & 0o037 == 0


def test_reopened_it_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    place = LogPlace(str(path))
    place.write("one\n")
    path.rename(moved)
    place.write("two\n")
    place.reopen()
    place.write("three\n")
    assert moved.read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n"
    place.close()
    with pytest.raises(OSError, match="descriptor"):
        place.write("four\n")


def test_reopened_where_nothing_can_be_opened_it_goes_on_in_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    place = LogPlace(str(folder / "access.log"))
    folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        place.reopen()
    place.write("one\n")
    place.close()
    assert (tmp_path / "moved" / "access.log").read_text() == "one\n"


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        LogPlace(str(tmp_path))


@pytest.mark.parametrize(("name", "stream"), [("stdout", "out"), ("stderr", "err")])
def test_the_standard_streams(capfd: pytest.CaptureFixture[str], name: str, stream: str) -> None:
    place = LogPlace(name)
    place.write("hello\n")
    place.reopen()
    place.write("again\n")
    place.close()
    os.write(1, b"")  # the stream is still open
    assert getattr(capfd.readouterr(), stream) == "hello\nagain\n"


def piped(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Both ends of a pipe; "stdout" means its end for writing."""
    reading, writing = os.pipe()
    monkeypatch.setattr("proxy.logplace._STREAMS", {"stdout": writing})
    return reading, writing


def test_lines_of_several_writers_to_one_pipe_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = piped(monkeypatch)
    places = [LogPlace("stdout") for _ in range(4)]
    texts = ["".join(f"{letter * 300}\n" for _ in range(400)) for letter in "abcd"]
    threads = [threading.Thread(target=place.write, args=(text,)) for place, text in zip(places, texts, strict=True)]
    for thread in threads:
        thread.start()
    with os.fdopen(reading, "rb") as pipe:
        lines = [pipe.readline() for _ in range(1600)]
    for thread in threads:
        thread.join()
    os.close(writing)
    assert {line for line in lines if len(set(line.strip())) != 1 or len(line) != 301} == set()


@pytest.mark.parametrize("reopened", [False, True])
def test_to_a_file_everything_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reopened: bool) -> None:
    place = LogPlace(str(tmp_path / "access.log"))
    if reopened:
        place.reopen()
    written: list[int] = []
    write = os.write

    def counted(fd: int, data: bytes) -> int:
        written.append(len(data))
        return write(fd, data)

    monkeypatch.setattr("proxy.logplace.os.write", counted)
    place.write("x" * 99 + "\n" + "y" * 99 + "\n" * 100_000)
    place.close()
    assert written == [100_199]
    assert (tmp_path / "access.log").stat().st_size == 100_199


def test_a_named_pipe_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reading = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    place = LogPlace(str(tmp_path / "log"))
    assert not place._file
    place.write("hello\n")
    assert os.read(reading, 100) == b"hello\n"
    place.close()
    os.close(reading)


def test_a_pipe_that_somebody_made_non_blocking_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = piped(monkeypatch)
    fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
    text = "x" * 99 + "\n"
    thread = threading.Thread(target=LogPlace("stdout").write, args=(text * 5000,))
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read(500_000) == text.encode() * 5000
    thread.join()
    os.close(writing)


def test_a_reader_who_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = piped(monkeypatch)
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        LogPlace("stdout").write("x\n")
    os.close(writing)
