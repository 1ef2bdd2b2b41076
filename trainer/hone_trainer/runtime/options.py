"""The options of the command line, one class for each kind of command."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hone_api.gpus import Gpu


@dataclass(frozen=True)
class RunOptions:
    """Inputs and outputs of a run. `port` 0 means no HTTP server; `nodes` is how many machines train.

    `gpu` is the GPU to prepare for when it is not visible here.
    """

    manifest: Path
    output: Path
    command: Literal["prepare", "run"] = "run"
    claims: dict[str, Path] = field(default_factory=dict)
    config_maps: dict[str, Path] = field(default_factory=dict)
    secrets: dict[str, Path] = field(default_factory=dict)
    port: int = 0
    termination_log: Path | None = None
    verbose: bool = False
    nodes: int = 1
    gpu: Gpu | None = None

    def to_arguments(self) -> list[str]:
        """Return the command line with these options, without the termination log, the nodes and the GPU."""
        text = [self.command, str(self.manifest), "--output", str(self.output)]
        if self.command == "run":
            text += ["--port", str(self.port)]
        given = (("--claim", self.claims), ("--config-map", self.config_maps), ("--secret", self.secrets))
        for option, folders in given:
            text += [word for name, folder in folders.items() for word in (option, f"{name}={folder}")]
        return [*text, "--verbose"] if self.verbose else text


@dataclass(frozen=True)
class PlanOptions:
    """The job whose memory is estimated."""

    manifest: Path
    claims: dict[str, Path] = field(default_factory=dict)
    config_maps: dict[str, Path] = field(default_factory=dict)
    secrets: dict[str, Path] = field(default_factory=dict)
    verbose: bool = False


@dataclass(frozen=True)
class MergeOptions:
    """An adapter, and the base model to merge it into: a folder or a name on the hub; None: the adapter's own base.

    `trust_remote_code` allows code that comes with the base model or the adapter's tokenizer to run.
    """

    adapter: Path
    out: Path
    base: str | None = None
    dtype: str = "auto"
    verbose: bool = False
    trust_remote_code: bool = False
