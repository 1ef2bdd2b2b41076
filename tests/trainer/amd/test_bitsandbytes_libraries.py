"""The libraries for ROCm in bitsandbytes' wheel: which one a base image loads, the GPUs in it, and its functions.

They need ROCm to be loaded, so they are read as files. bitsandbytes holds code for GPUs in bundles that clang
compresses (`CCOB`); LLVM's documentation of the offload bundler describes both formats.
"""

import logging
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import base_images
import bitsandbytes
import pytest
import torch
import zstandard
from bitsandbytes.cextension import get_cuda_bnb_library_path
from bitsandbytes.cuda_specs import CUDASpecs

PACKAGE = Path(bitsandbytes.__file__).parent
LIBRARIES = sorted(PACKAGE.glob("libbitsandbytes_rocm*.so"))
MI200, MI300, MI350 = "gfx90a", "gfx942", "gfx950"
# ROCm's version.
OLDEST_FOR_MI350 = (7, 0)
# What bitsandbytes calls for paged optimizers, partly by names that it puts together.
USED_BY_NAME = {"cfill_fp32", "cfill_uint8", "cget_managed_ptr", "cprefetch", "get_context"}


def bundles(library: bytes) -> Iterator[bytes]:
    """Return the unpacked bundles in a library."""
    start = library.find(b"CCOB")
    while start >= 0:
        (version,) = struct.unpack_from("<H", library, start + 4)
        sizes, header = {2: ("<I", 24), 3: ("<Q", 32)}[version]
        (size,) = struct.unpack_from(sizes, library, start + 8)
        yield zstandard.ZstdDecompressor().decompressobj().decompress(library[start + header : start + size])
        start = library.find(b"CCOB", start + size)


def targets(bundle: bytes) -> set[str]:
    """Return the GPUs that a bundle has code for, such as gfx942."""
    assert bundle.startswith(b"__CLANG_OFFLOAD_BUNDLE__")
    (count,) = struct.unpack_from("<Q", bundle, 24)
    place, found = 32, set()
    for _ in range(count):
        _, size, length = struct.unpack_from("<QQQ", bundle, place)
        name = bundle[place + 24 : place + 24 + length].decode()
        place += 24 + length
        if size and name.startswith("hip"):
            found.add(name.rpartition("--")[2].partition(":")[0])
    return found


def exported(library: bytes) -> set[str]:
    """Return the functions that a 64-bit ELF library exports."""
    (sections,) = struct.unpack_from("<Q", library, 40)
    size, count = struct.unpack_from("<HH", library, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", library, sections + number * size) for number in range(count)]
    symbols = next(header for header in headers if header[1] == 11)  # SHT_DYNSYM
    names = headers[symbols[6]][4]
    found = set()
    for place in range(symbols[4], symbols[4] + symbols[5], 24):
        name, kind, _, section = struct.unpack_from("<IBBH", library, place)
        if kind & 15 == 2 and section:  # a function, defined here
            found.add(library[names + name : library.index(b"\0", names + name)].decode())
    return found


def rocm(library: Path) -> tuple[int, int]:
    digits = re.sub(r"\D", "", library.stem)
    return int(digits[0]), int(digits[1:])


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.stem)
def test_every_library_has_code_for_the_instinct_gpus_of_its_rocm(library: Path) -> None:
    found = [targets(bundle) for bundle in bundles(library.read_bytes())]
    assert found
    needed = {MI200, MI300} | ({MI350} if rocm(library) >= OLDEST_FOR_MI350 else set())
    assert all(needed <= each for each in found)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.stem)
def test_every_library_has_the_functions_that_bitsandbytes_calls(library: Path) -> None:
    sources = [PACKAGE / "functional.py", PACKAGE / "backends/cuda/ops.py"]
    called = set(re.findall(r"\blib\.(c\w+)", "".join(source.read_text() for source in sources))) | USED_BY_NAME
    # 4 bits of qlora, and the states of 8-bit and 32-bit optimizers.
    assert {"cquantize_blockwise_bf16_nf4", "cdequantize_blockwise_bf16_nf4", "cgemm_4bit_bf16"} <= called
    assert {"cadam_8bit_blockwise_grad_bf16", "cadam32bit_grad_fp32", "clion_8bit_blockwise_grad_fp32"} <= called
    assert called - exported(library.read_bytes()) == set()


@pytest.mark.parametrize("base", base_images.BASES, ids=lambda base: base.rocm)
def test_every_base_finds_a_library_made_for_its_rocm(
    base: base_images.Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.version, "hip", base.hip + ".0")
    monkeypatch.delenv("BNB_ROCM_VERSION", raising=False)
    version = tuple(int(part) for part in base.hip.split("."))
    with caplog.at_level(logging.WARNING):
        found = get_cuda_bnb_library_path(CUDASpecs((9, 4), base.hip.replace(".", ""), (version[0], version[1])))
    assert found in LIBRARIES
    assert rocm(found) == version
    assert not caplog.records
