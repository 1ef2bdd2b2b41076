"""The bases of the runtime image that docs/images.md lists, the default one first, the oldest one last."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/images.md"
ROW = re.compile(
    r"^\| `(?P<reference>rocm/pytorch:rocm(?P<rocm>[\d.]+)_ubuntu[\d.]+_py(?P<python>[\d.]+)"
    r"_pytorch_release_(?P<torch>[\d.]+)@sha256:[0-9a-f]{64})` \| (?P<hip>[\d.]+) \| ",
    re.M,
)


@dataclass(frozen=True)
class Base:
    """A base by its tag and digest, with the versions that the tag names. `hip` is what its torch reports."""

    reference: str
    rocm: str
    hip: str
    python: str
    torch: str


BASES = [Base(**match.groupdict()) for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
DEFAULT, OLDEST = BASES[0], BASES[-1]
