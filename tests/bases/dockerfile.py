"""The commands of a Dockerfile, to run them elsewhere."""

import re
from pathlib import Path


def read_run(file: Path, stage: str, text: str) -> str:
    """Return the shell command of the RUN instruction of a stage that has `text` in it, without its mounts.

    Raises SystemExit when not exactly one has.
    """
    content = re.sub(r"^\s*#.*\n", "", file.read_text(encoding="utf-8"), flags=re.M).replace("\\\n", "")
    stages = re.split(r"^FROM ", content, flags=re.M)
    (lines,) = [each for each in stages if re.match(rf"\S+ AS {stage}\n", each)]
    found = [line for line in lines.splitlines() if line.startswith("RUN ") and text in line]
    if len(found) != 1:
        raise SystemExit(f"{file.name}: {len(found)} RUN instructions of stage {stage} hold {text!r}, not one")
    return re.sub(r"^RUN (\s*--mount=\S+)*\s*", "", found[0])
