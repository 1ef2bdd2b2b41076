"""After any damage to an output folder, the next start ends with the same artifact, or names what to remove."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import long_matrix
import pytest

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]

SPEC = {"training": {"maxSteps": 4}, "checkpoint": {"saveSteps": 2}}
DATA = "prepared/train/data-00000-of-00001.arrow"
CHECKPOINT = "checkpoints/step-00000004"
PATHS = [
    *("adapter", "adapter/README.md", "adapter/adapter_model.safetensors", "adapter/tokenizer.json"),
    *("checkpoints", "checkpoints/run.json", "checkpoints/before.json", "checkpoints/lock", CHECKPOINT),
    *(f"{CHECKPOINT}/{name}" for name in ("hone.json", "adapter_model.safetensors", "optimizer.pt")),
    *("prepared", "prepared/prepared.json", "prepared/train", DATA),
    *("prepared/train/state.json", "prepared/train/dataset_info.json"),
    *("logs", "logs/metrics.jsonl", "report", "report/report.json", "report/report.html", "manifest.json"),
]  # fmt: skip
# A remedy may uncover the next damage: that of manifest.json leads to adapter/.
STARTS = 4


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def empty(path: Path, chance: random.Random) -> None:
    is_folder = path.is_dir()
    remove(path)
    path.mkdir() if is_folder else path.touch()


def cut(path: Path, chance: random.Random) -> None:
    for file in files_below(path):
        os.truncate(file, chance.randrange(file.stat().st_size) if file.stat().st_size else 0)


def flip_a_bit(path: Path, chance: random.Random) -> None:
    for file in files_below(path):
        content = bytearray(file.read_bytes())
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)


def fill_with_garbage(path: Path, chance: random.Random) -> None:
    for file in files_below(path):
        file.write_bytes(chance.choice([b"null", b"[]", b"5", b'""', b"{}", b"\xff\xfe\x00", chance.randbytes(300)]))


def make_file(path: Path, chance: random.Random) -> None:
    remove(path)
    path.write_text("another's")


def make_folder(path: Path, chance: random.Random) -> None:
    remove(path)
    (path / "below").mkdir(parents=True)


def make_link_to_a_copy(path: Path, chance: random.Random) -> None:
    path.rename(path.with_name("moved-away"))
    path.symlink_to("moved-away")


def make_dangling_link(path: Path, chance: random.Random) -> None:
    remove(path)
    path.symlink_to("nowhere")


def make_pipe(path: Path, chance: random.Random) -> None:
    remove(path)
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "removed": lambda path, chance: remove(path),
    "empty": empty,
    "cut": cut,
    "flipped": flip_a_bit,
    "garbage": fill_with_garbage,
    "file": make_file,
    "folder": make_folder,
    "link": make_link_to_a_copy,
    "dangling": make_dangling_link,
    "pipe": make_pipe,
}
CASES = [
    (state, path, damage)
    for state in ("finished", "unsaved")
    for path in PATHS
    for damage in DAMAGES
    if not (state == "unsaved" and path == "manifest.json")
]


def files_below(path: Path) -> Iterator[Path]:
    return iter([path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()))


def artifact(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "adapter").iterdir()}


@pytest.fixture(scope="module")
def document(job: Job) -> dict[str, Any]:
    return job(**SPEC, dataset={"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.25})


@pytest.fixture(scope="module")
def whole(document: dict[str, Any], train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = train(document, output=tmp_path_factory.mktemp("whole") / "out")
    assert done.code == 0, done.log
    return Path(done.output)


@pytest.mark.parametrize(("state", "path", "damage"), long_matrix.sample(CASES, "damaged trees", 10))
def test_a_damaged_tree_ends_with_the_same_artifact_or_names_what_to_remove(
    document: dict[str, Any], train: Train, whole: Path, tmp_path: Path, state: str, path: str, damage: str
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    if state == "unsaved":
        (output / "manifest.json").unlink()
    DAMAGES[damage](output / path, random.Random(f"{long_matrix.get_seed()}:{state}:{path}:{damage}"))
    for _ in range(STARTS):
        done = train(document, output=output)
        assert done.message.get("reason") != "InternalError", done.log
        assert "Traceback" not in done.log
        if done.code == 0:
            break
        follow_the_remedy(done)
    assert done.code == 0, done.log
    if "what was measured before training is left out" in done.log or not (output / "checkpoints/before.json").exists():
        # it contains the metrics
        (output / "adapter/README.md").write_bytes((whole / "adapter/README.md").read_bytes())
    assert artifact(output) == artifact(whole)


def follow_the_remedy(done: Any) -> None:
    """Do what the message asks for: remove a path, or empty the output folder."""
    message = done.message["message"]
    if found := re.search(r"[Rr]emove (/\S+?)[,.]? and start again", message):
        assert os.path.lexists(found[1]), message
        remove(Path(found[1]))
    else:
        assert re.search(rf"[Cc]hoose another --output|empty {done.output} ", message), message
        remove(done.output)


def test_prepared_rows_with_a_flipped_bit_are_prepared_again(
    document: dict[str, Any], train: Train, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert train(document, command="prepare", output=output).code == 0
    before = (output / DATA).read_bytes()
    spoiled = bytearray(before)
    spoiled[len(spoiled) // 2] ^= 1
    (output / DATA).write_bytes(spoiled)
    done = train(document, output=output)
    assert done.code == 0, done.log
    assert f"preparing {output}/prepared again: train/{Path(DATA).name} has other content than was written" in done.log
    assert artifact(output) == artifact(whole)


def test_a_run_continues_from_its_checkpoint_when_rows_are_prepared_again(
    document: dict[str, Any], train: Train, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    for path in ("manifest.json", "adapter", CHECKPOINT, DATA):
        remove(output / path)
    done = train(document, output=output)
    assert done.code == 0, done.log
    assert "resuming from the checkpoint at step 2 of 4" in done.log
    assert artifact(output) == artifact(whole)


def test_prepared_rows_that_do_not_come_from_hone_are_not_removed(job: Job, train: Train, tmp_path: Path) -> None:
    keep = tmp_path / "out/prepared/keep"
    keep.parent.mkdir(parents=True)
    keep.write_text("mine")
    refused = train(job(), output=tmp_path / "out", command="prepare")
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec")
    assert keep.read_text() == "mine"


def test_a_link_in_place_of_the_lock_does_not_empty_its_target(job: Job, train: Train, tmp_path: Path) -> None:
    (tmp_path / "out/checkpoints").mkdir(parents=True)
    (tmp_path / "data").write_text("mine")
    (tmp_path / "out/checkpoints/lock").symlink_to(tmp_path / "data")
    refused = train(job(), output=tmp_path / "out", command="prepare")
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec")
    assert (tmp_path / "data").read_text() == "mine"


def test_a_record_of_a_newer_version_is_read(
    document: dict[str, Any], train: Train, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    remove(output / "manifest.json")
    record = output / "checkpoints/run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"added": {"later": 1}}))
    done = train(document, output=output)
    assert done.code == 0, done.log
    assert artifact(output) == artifact(whole)
