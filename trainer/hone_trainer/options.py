"""What the command line says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Options:
    """Where a run reads from and writes to. `port` 0 means no HTTP server."""

    manifest: Path
    output: Path
    command: Literal["prepare", "run"] = "run"
    claims: dict[str, Path] = field(default_factory=dict)
    config_maps: dict[str, Path] = field(default_factory=dict)
    port: int = 0
    termination_log: Path | None = None
    verbose: bool = False


@dataclass(frozen=True)
class PlanOptions:
    """What to estimate the memory of."""

    manifest: Path
    claims: dict[str, Path] = field(default_factory=dict)
    config_maps: dict[str, Path] = field(default_factory=dict)
    verbose: bool = False


@dataclass(frozen=True)
class MergeOptions:
    """What to merge into what. `base` is a folder or a name on the hub; None: what the adapter says."""

    adapter: Path
    out: Path
    base: str | None = None
    dtype: str = "auto"
    verbose: bool = False
