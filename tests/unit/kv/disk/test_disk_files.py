"""The files of the disk tier: private, whole or gone, and never believed without a check."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.kv.disk import files as module
from daemon.kv.disk.files import INDEX, Files, UnusableError
from daemon.kv.disk.format import DamagedError
from daemon.kv.disk.limits import Space
from daemon.kv.disk.note import Note
from daemon.kv.disk.piece import Piece
from tests.unit.kv.disk.pieces import HASHES, NAMESPACE, PARTS, PIECE, content, held


def test_piece_is_read_as_it_was_written(files: Files) -> None:
    """In a file of its name, for this user alone."""
    size = files.write(PIECE, PARTS)
    assert content(files.read(replace(PIECE, nbytes=size))) == content(PARTS)
    path = files.folder / PIECE.name
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (size, 0o600)
    assert files.folder.stat().st_mode & 0o777 == 0o700
    ((piece, _used),) = files.scan(2e9).pieces
    assert piece == replace(PIECE, nbytes=size)


def test_directory_that_the_tier_makes_is_left_out_of_backups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is there already is left as its owner has it: the mark may have been taken off."""
    marked: list[Path] = []
    monkeypatch.setattr(module, "leave_out_of_backups", marked.append)
    for _ in range(2):
        files = Files(tmp_path / "kv")
        files.open()
        files.close()
    assert marked == [tmp_path / "kv"]


def test_directory_without_locks_is_not_taken_for_one_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of some servers have none; no daemon could be found that has to be ended."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(UnusableError, match="its file system has no locks"):
        Files(tmp_path / "kv").open()


def test_no_token_lies_in_a_file(files: Files) -> None:
    """Hashes stand for them; nor does a salt, of which the namespace has a digest."""
    files.write(PIECE, [])
    assert bytes([3] * 64) not in (files.folder / PIECE.name).read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_changed_bit_is_noticed(files: Files, place: int, bit: int) -> None:
    """At the scan, or when the piece is read."""
    size = files.write(PIECE, PARTS)
    path = files.folder / PIECE.name
    changed = bytearray(path.read_bytes())
    changed[place % size] ^= 1 << bit
    path.write_bytes(changed)
    if files.scan(2e9).pieces:
        with pytest.raises(DamagedError):
            files.read(replace(PIECE, nbytes=size))


@pytest.mark.parametrize("cut", [0, 5, 30, 200, -1])
def test_torn_file_is_removed_at_the_scan(files: Files, cut: int) -> None:
    """Wherever it ends."""
    files.write(PIECE, PARTS)
    path = files.folder / PIECE.name
    path.write_bytes(path.read_bytes()[:cut])
    found = files.scan(2e9)
    assert (found.pieces, found.removed, held(files)) == ([], 1, [])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_file_that_cannot_be_opened_is_left_out(files: Files, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It is there for the next scan; a lasting removal may be meant for it."""
    size = files.write(PIECE, PARTS)
    path = files.folder / PIECE.name

    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        found = files.scan(2e9)
    assert (found.pieces, found.removed, list(files.left.items())) == ([], 0, [(PIECE.name, size)])
    assert found.trouble is not None
    assert found.trouble.errno == number
    files.remove([])
    assert path.exists()
    assert ([piece for piece, _ in files.scan(2e9).pieces], files.left) == ([replace(PIECE, nbytes=size)], {})


def test_lasting_removal_takes_what_was_left_out(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an invalidation was meant for must not come back; a piece that was written anew is not in doubt."""
    files.write(PIECE, PARTS)
    (files.folder / "other.kv").write_bytes((files.folder / PIECE.name).read_bytes())
    (files.folder / "other.kv").chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_piece", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "fault")))
        files.scan(2e9)
    assert set(files.left) == {PIECE.name, "other.kv"}
    files.write(PIECE, PARTS)
    files.remove([], lasting=True)
    assert (held(files), files.left) == ([PIECE.name], {})


def test_look_goes_on_when_files_vanish(files: Files) -> None:
    """A daemon that runs removes some meanwhile: what is left is told of."""
    names = {f"{number}.kv" for number in range(12)}
    for name in names:
        (files.folder / name).write_bytes(b"no piece")
    looked = files.look()
    first, piece, _ = next(looked)
    gone = set(sorted(names - {first})[::2])
    for name in gone:
        (files.folder / name).unlink()
    assert piece is None
    assert [first, *sorted(name for name, _, _ in looked)] == [first, *sorted(names - gone - {first})]


def test_file_that_vanishes_is_not_damaged(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its size and its bytes."""
    size = files.write(PIECE, PARTS)
    (files.folder / "other.kv").write_bytes(b"no piece")
    read = files._piece

    def vanishing(name: str, nbytes: int) -> Piece:
        if name == "other.kv":
            (files.folder / name).unlink()
        return read(name, nbytes)

    monkeypatch.setattr(files, "_piece", vanishing)
    assert [piece for _, piece, _ in files.look()] == [replace(PIECE, nbytes=size)]


def test_old_or_foreign_files_are_removed(files: Files, tmp_path: Path) -> None:
    """Of our names alone: what others put there stays."""
    files.write(PIECE, PARTS)
    sound = (files.folder / PIECE.name).read_bytes()
    (files.folder / "old.kv").write_bytes(b"mlx-sidecar kv 0\n" + sound[17:])
    (files.folder / "renamed.kv").write_bytes(sound)
    (files.folder / "half.kv.new").write_bytes(sound)
    (files.folder / "open.kv").write_bytes(sound)
    (files.folder / "open.kv").chmod(0o644)
    os.link(files.folder / PIECE.name, tmp_path / "linked")
    (files.folder / "link.kv").symlink_to(tmp_path / "linked")
    for name in ("notes.txt", "draft.new"):
        (files.folder / name).write_text("mine")
    assert files.scan(2e9).pieces == []
    assert held(files) == ["draft.new", "notes.txt"]
    assert (tmp_path / "linked").exists()


def test_directory_that_is_removed_in_use_is_made_again(files: Files) -> None:
    """And locked. What it had is gone, so an invalidation is done."""
    files.write(PIECE, PARTS)
    shutil.rmtree(files.folder)
    files.remove([PIECE.name], lasting=True)
    size = files.write(PIECE, PARTS)
    files.write_index([replace(PIECE, nbytes=size)], [])
    assert content(files.read(replace(PIECE, nbytes=size))) == content(PARTS)
    with pytest.raises(UnusableError, match="another daemon"):
        Files(files.folder).open()


def test_directory_of_another_daemon_in_its_place_is_not_written_to(files: Files, tmp_path: Path) -> None:
    """Until that daemon is gone."""
    files.folder.rename(tmp_path / "before")
    other = Files(files.folder)
    other.open()
    for use in (lambda: files.write(PIECE, PARTS), lambda: files.remove([], lasting=True)):
        with pytest.raises(UnusableError, match="another daemon"):
            use()
    assert held(files) == []
    other.close()
    files.write(PIECE, PARTS)
    assert held(files) == [PIECE.name]


def test_directory_of_a_disk_that_is_gone_is_not_made_elsewhere(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything taken for removed: the disk may come back with it."""
    shutil.rmtree(files.folder)
    fstat = os.fstat

    def of_another_disk(file: int) -> os.stat_result:
        inode = [*fstat(file)]
        inode[stat.ST_DEV] += 1
        return os.stat_result(inode)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", of_another_disk)
        for use in (lambda: files.write(PIECE, PARTS), lambda: files.remove([], lasting=True)):
            with pytest.raises(UnusableError, match="not mounted"):
                use()
    assert not files.folder.exists()
    files.write(PIECE, PARTS)


def test_directory_of_others_is_not_used(tmp_path: Path) -> None:
    """One that others can enter, a link, a file, or one that another daemon has locked."""
    (tmp_path / "open").mkdir(0o755)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "kv")
    (tmp_path / "file").write_text("")
    Files(tmp_path / "kv").open()
    locked = Files(tmp_path / "kv")
    for files in (Files(tmp_path / "open"), Files(tmp_path / "link"), Files(tmp_path / "file"), locked):
        with pytest.raises(UnusableError):
            files.open()


def test_note_tells_other_processes_of_its_directory_alone(tmp_path: Path) -> None:
    """Until what it stands for is done; the process that wrote it knows better."""
    place, folder = tmp_path / "state", tmp_path / "kv"
    note = Note(place, folder)
    assert not note.look()
    note.write()
    assert not note.look()
    assert not Note(place, tmp_path / "other").look()
    other = Note(place, folder)
    other.write()
    assert other.look()
    other.clear()
    assert not Note(place, folder).look()


def test_note_is_removed_by_those_that_saw_it(tmp_path: Path) -> None:
    """One that was written since, in place of it, is about something else."""
    writer, reader = Note(tmp_path, tmp_path / "kv"), Note(tmp_path, tmp_path / "kv")
    for _ in range(3):
        writer.write()
    assert len(list(tmp_path.iterdir())) == 1
    assert reader.look()
    writer.write()
    reader.clear()
    assert reader.look()
    reader.clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trouble", [None, OSError(errno.ENOTSUP, "no such operation")])
def test_lasting_removal_reaches_the_platter_of_a_mac(
    files: Files, monkeypatch: pytest.MonkeyPatch, trouble: OSError | None
) -> None:
    """There, fsync stops at the cache of the disk. A file system without a full one does what it can."""
    asked: list[int] = []

    def ask(descriptor: int, command: int) -> None:
        assert os.path.samestat(os.fstat(descriptor), files.folder.stat())
        asked.append(command)
        if trouble is not None:
            raise trouble

    files.write(PIECE, PARTS)
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", ask)
    files.remove([PIECE.name])
    assert asked == []
    files.remove([PIECE.name], lasting=True)
    assert asked == [51]


def test_index_spares_reading_the_headers(files: Files) -> None:
    """A piece that is newer than the index is read, and its bytes count as written; a damaged index only costs time."""
    pieces = [replace(PIECE, start=0, hashes=tuple(HASHES[:4])), Piece(NAMESPACE, "m", 4, HASHES[3], tuple(HASHES[4:]))]
    pieces = [replace(piece, nbytes=files.write(piece, PARTS)) for piece in pieces]
    for piece in pieces:
        os.utime(files.folder / piece.name, (7201, 7201))
    files.write_index(pieces[:1], [[5, 100]])
    found = files.scan(2e9)
    assert (len(found.pieces), found.read, found.hours) == (2, 1, [[5, 100], [2, pieces[1].nbytes]])
    index = files.folder / INDEX
    index.write_bytes(index.read_bytes()[:-1])
    found = files.scan(2e9)
    assert (len(found.pieces), found.read) == (2, 2)
    assert found.hours == [[2, sum(piece.nbytes for piece in pieces)]]


def test_use_in_the_future_counts_as_now(files: Files) -> None:
    """A clock that was ahead would keep a piece for ever."""
    files.write(PIECE, PARTS)
    files.used([(PIECE.name, 3e9)])
    ((_piece, used),) = files.scan(2e9).pieces
    assert used == 2e9


def test_last_tenth_of_a_disk_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of the piece."""
    monkeypatch.setattr(Files, "space", lambda _self: Space(10_000, 1_500))
    with pytest.raises(OSError, match="tenth"):
        files.write(PIECE, PARTS)
    assert held(files) == []


def test_piece_of_another_part_is_removed(tmp_path: Path) -> None:
    """A machine that is another rank today has other heads, and the lone engine has all. The name does not tell."""
    for before, now in (("rank 0 of 2", "rank 1 of 2"), ("rank 0 of 2", ""), ("", "rank 0 of 2")):
        files = Files(tmp_path / "kv", before)
        files.open()
        files.write(PIECE, PARTS)
        files.write_index([PIECE], [])
        ((piece, _),) = files.scan(1e9).pieces
        files.close()
        other = Files(tmp_path / "kv", now)
        other.open()
        with pytest.raises(DamagedError, match="another piece"):
            other.read(replace(piece, part=""))
        found = other.scan(1e9)
        assert (found.pieces, found.removed) == ([], 1)
        other.close()


def test_parts_are_read_back_by_their_rank(tmp_path: Path) -> None:
    """With an index and without one."""
    files = Files(tmp_path / "kv", "rank 0 of 2")
    files.open()
    files.write(PIECE, PARTS)
    for _ in range(2):
        ((piece, _),) = files.scan(1e9).pieces
        assert [bytes(part.data) for part in files.read(piece)] == [bytes(part.data) for part in PARTS]
        files.write_index([piece], [])


def test_directory_of_a_group_may_come_first(tmp_path: Path) -> None:
    """It lies in that of whole models, which must be private as well."""
    parts, whole = Files(tmp_path / "kv" / "group", "rank 0 of 2"), Files(tmp_path / "kv")
    parts.open()
    whole.open()
    assert whole.scan(1e9).pieces == []
    parts.close()
    whole.close()
