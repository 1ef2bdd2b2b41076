"""Archives that would fill the volume or the memory, or write something else than files in their folder."""

import errno
import gzip
import io
import shutil
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from hone_api.reasons import DATASET_INVALID, HoneError
from hone_trainer.modelpack import unpacking
from hone_trainer.modelpack.artifact import UnreadableArtifactError
from hone_trainer.modelpack.unpacking import SMALLEST_LIMIT_BYTES, unpack
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import RemoteObject
from hone_trainer.remote.oci_store import unpack_archives

MIB = 2**20


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: str) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type = size, kind
    for field, value in more.items():
        setattr(found, field, value)
    return found


def write(folder: Path, members: Iterable[tarfile.TarInfo]) -> Path:
    """Write a compressed archive that has only the headers of its members."""
    path = folder / "archive.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for each in members:
            file.write(each.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1024))
    return path


def refused(path: Path, folder: Path) -> str:
    with pytest.raises(UnreadableArtifactError) as caught:
        unpack(path, "tar+gzip", folder)
    return str(caught.value)


def test_a_small_archive_can_not_fill_the_volume(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = write(tmp_path, [member("a"), member("b", SMALLEST_LIMIT_BYTES + 1)])
    assert "with more than 1 GiB of files" in refused(path, tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["a"]


def test_many_small_files_that_are_too_much_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "SMALLEST_LIMIT_BYTES", MIB)
    monkeypatch.setattr(unpacking, "LARGEST_RATIO", 2)
    (tmp_path / "out").mkdir()
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for number in range(20):
            tar.addfile(member(f"{number}", MIB // 10), io.BytesIO(bytes(MIB // 10)))
    assert "of files" in refused(path, tmp_path / "out")
    assert len([*(tmp_path / "out").iterdir()]) == 10


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MOST_FILES", 10)
    path = write(tmp_path, [member(str(number)) for number in range(11)])
    assert "with more than 10 files" in refused(path, tmp_path / "out")


@pytest.mark.parametrize(
    "header",
    [
        member("././@LongLink", 200 * MIB, tarfile.GNUTYPE_LONGNAME),
        member("pax", 200 * MIB, tarfile.XHDTYPE),
        member("pax", 200 * MIB, tarfile.XGLTYPE),
    ],
    ids=["long name", "attributes", "attributes of all"],
)
def test_a_header_can_not_fill_the_memory(tmp_path: Path, header: tarfile.TarInfo) -> None:
    path = tmp_path / "archive.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(200):
            file.write(bytes(MIB))
    tracemalloc.start()
    try:
        assert "that is not of its files" in refused(path, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "hostile",
    [
        member("a", 0, tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("a", 0, tarfile.LNKTYPE, linkname="../../secret"),
        member("a", 0, tarfile.CHRTYPE),
        member("a", 0, tarfile.BLKTYPE),
        member("a", 0, tarfile.FIFOTYPE),
        member("../a"),
        member("a/../../b"),
        member("/a"),
        member("a\\b"),
        member("a\x1b[2J"),
    ],
)
def test_what_is_no_file_below_the_folder_is_refused(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    refused(write(tmp_path, [hostile]), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()]


@pytest.mark.parametrize(
    "names", [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a")], ids=["same", "dot", "file and folder", "reverse"]
)
def test_a_name_is_there_once(tmp_path: Path, names: tuple[str, str]) -> None:
    assert "twice" in refused(write(tmp_path, [member(name) for name in names]), tmp_path / "out")


def test_a_file_for_which_the_volume_has_no_room_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10 * MIB, free=MIB))
    with pytest.raises(OSError, match="No space") as caught:
        unpack(write(tmp_path, [member("a", 2 * MIB)]), "tar+gzip", tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC


def test_a_bomb_is_the_mistake_of_the_field(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write(files, [member("b", 2**50)])
    found = RemoteObject("archive.tar.gz", "sha256:0", 1, "sha256:0", packing="tar+gzip")
    location = Location("dataset", "oci://registry.example.com/data/rows:v1")
    with pytest.raises(HoneError) as caught:
        unpack_archives(location, [found], files, tmp_path / "out")
    assert caught.value.reason is DATASET_INVALID
    assert caught.value.message.startswith("spec.dataset.uri is oci://registry.example.com/data/rows:v1, which has an")


def test_a_small_archive_with_zstd_can_not_fill_the_volume(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "archive.tar.zst"
    headers = [member("a"), member("b", SMALLEST_LIMIT_BYTES + 1)]
    path.write_bytes(zstandard.compress(b"".join(each.tobuf(tarfile.GNU_FORMAT) for each in headers) + bytes(1024)))
    with pytest.raises(UnreadableArtifactError, match="with more than 1 GiB of files"):
        unpack(path, "tar+zstd", tmp_path / "out")
