"""Which files a folder, a glob and a path on a claim mean, and what is reported about the others."""

import glob
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.data_files
import pytest
from datasets.exceptions import DatasetGenerationError
from hone_api.finetunejobs.sources import DatasetSource
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import HoneError
from hone_trainer.data import dataset, formats
from hone_trainer.data.files import DataFiles, find_files
from hone_trainer.data.messages import MessageCounts
from hone_trainer.data.readers import row_files
from hone_trainer.data.readers.row_streams import FileStream
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.inputs.named_datasets import NamedDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Find = Callable[..., DataFiles]


def find(job: Any, claim: Path, path: str | None) -> DataFiles:
    inputs = JobInputs(FineTuneJob.model_validate(job()), {"data": claim}, {}, {})
    return find_files(DatasetSource.model_validate({"claim": {"name": "data", "path": path}}), inputs)


def names(found: DataFiles) -> list[str]:
    return [name for _, name in found.files]


def make(folder: Path, *files: str) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')
    return folder


def test_files_of_a_folder_come_in_the_order_of_their_names(job: Any, tmp_path: Path) -> None:
    make(tmp_path, "set/b.jsonl", "set/a.jsonl", "set/sub/c.jsonl", "set/notes.md")
    found = find(job, tmp_path, "set")
    assert names(found) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert found.summarize() == "dataset of 3 files: a.jsonl, b.jsonl, sub/c.jsonl; left out: notes.md"
    assert names(find(job, tmp_path, "set/*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert names(find(job, tmp_path, "*/*/c.jsonl")) == ["c.jsonl"]


@pytest.mark.parametrize(
    ("files", "taken", "left_out"),
    [
        (["train.jsonl", ".ipynb_checkpoints/train-checkpoint.jsonl", "._train.jsonl"], ["train.jsonl"], []),
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], ["test.jsonl"]),
        (["train/a.jsonl", "validation/a.jsonl"], ["train/a.jsonl"], ["validation/a.jsonl"]),
        (["train.jsonl", "old.jsonl"], ["train.jsonl"], ["old.jsonl"]),
        (["a.jsonl", "dev.jsonl"], ["a.jsonl"], ["dev.jsonl"]),
        (["a.jsonl", "LICENSE.txt", "requirements.txt"], ["a.jsonl"], ["LICENSE.txt", "requirements.txt"]),
        (["a.parquet", "dataset_infos.json", "README.md"], ["a.parquet"], ["README.md", "dataset_infos.json"]),
        (["contest.jsonl", "latest.jsonl", "devices.jsonl"], ["contest.jsonl", "devices.jsonl", "latest.jsonl"], []),
        (["a.JSONL", "b.jsonl"], ["a.JSONL", "b.jsonl"], []),
    ],
)
def test_a_folder_leaves_out_files_without_rows_to_train_on(
    job: Any, tmp_path: Path, files: list[str], taken: list[str], left_out: list[str]
) -> None:
    found = find(job, make(tmp_path, *files), None)
    assert (names(found), found.left_out) == (taken, left_out)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.jsonl", "b.json"], "several endings: b.json, a.jsonl"),
        (["a.txt", "b.csv"], "several endings"),
        (["test.jsonl"], "files of other splits: test.jsonl"),
        (["README.md"], "no file to train on"),
    ],
)
def test_a_folder_that_could_mean_several_things_is_refused(
    job: Any, tmp_path: Path, files: list[str], said: str
) -> None:
    with pytest.raises(HoneError, match=said):
        find(job, make(tmp_path, *files), None)


parts = st.lists(st.sampled_from(["train", "test", "val", "dev", "a", "0", "latest"]), min_size=1, max_size=3)
file_names = st.builds(lambda words, mark: mark.join(words) + ".jsonl", parts, st.sampled_from("-_."))
paths = st.builds(
    lambda folder, name: f"{folder}/{name}" if folder else name,
    st.sampled_from(["", "x", "x/train", "test"]),
    file_names,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(paths, min_size=1, max_size=4, unique=True))
def test_a_folder_means_the_files_that_datasets_trains_on(tmp_path_factory: Any, files: list[str]) -> None:
    folder = make(tmp_path_factory.mktemp("folder"), *files)
    patterns = datasets.data_files.get_data_patterns(str(folder))
    if "train" not in patterns:
        return  # datasets has no rows to train on there
    expected = datasets.data_files.DataFilesList.from_patterns(patterns["train"], base_path=str(folder))
    inputs = JobInputs.__new__(JobInputs)
    object.__setattr__(inputs, "claims", {"data": folder})
    found = find_files(DatasetSource.model_validate({"claim": {"name": "data"}}), inputs)
    assert sorted(str(path) for path, _ in found.files) == sorted(set(expected))


odd_folders = st.sampled_from(["data", "v[1]", "s*", "a?", "[!x]", ".cache/set", "__x/y", "*/**"])
pattern_parts = st.sampled_from(["*", "**", "s", "s?b", "[st]*", "x*", ".*", "[a-c]*"])
patterns = st.builds(
    lambda folders, name: "/".join([*folders, name]),
    st.lists(pattern_parts, max_size=2),
    st.sampled_from(["*.jsonl", "?.jsonl", "[ab].jsonl", ".*.jsonl", "[!a]*.jsonl"]),
)
stored = st.sampled_from(
    [
        "a.jsonl",
        "b.jsonl",
        "cd.jsonl",
        ".a.jsonl",
        "s/a.jsonl",
        "s/.h/a.jsonl",
        "s/sub/b.jsonl",
        ".git/a.jsonl",
        "x1/c.jsonl",
    ]
)


@settings(max_examples=150, deadline=None)
@given(odd_folders, patterns, st.sets(stored, max_size=6))
def test_a_pattern_means_the_files_that_a_shell_finds_below_the_claim(
    job: Any, tmp_path_factory: Any, folder: str, pattern: str, files: set[str]
) -> None:
    around = tmp_path_factory.mktemp("claims")
    make(around, *(f"{other}/{name}" for other in ("v1", "secret", "ab", "y") for name in ("a.jsonl", "s/a.jsonl")))
    claim = make(around / folder, *files)
    claim.mkdir(parents=True, exist_ok=True)
    expected = {claim / name for name in glob.glob(pattern, root_dir=claim, recursive=True)}
    try:
        found = {path for path, _ in find(job, claim, pattern).files}
    except HoneError as refused:
        reason, found = refused.reason.name, set()
    else:
        reason = "DatasetNotFound"
    assert (reason, found) == ("DatasetNotFound", {path for path in expected if path.is_file()})


@pytest.mark.parametrize("pattern", ["**.jsonl", "a**b.jsonl", "**x/*.jsonl", "***"])
def test_two_stars_inside_a_name_are_refused(job: Any, tmp_path: Path, pattern: str) -> None:
    with pytest.raises(HoneError) as refused:
        find(job, make(tmp_path, "a.jsonl"), pattern)
    assert refused.value.reason.name == "InvalidSpec"
    assert refused.value.message.startswith(f"spec.dataset.claim.path is '{pattern}'")


any_name = st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & set(b"\0/") and name[:1] not in b"._")


@settings(max_examples=60, deadline=None)
@given(any_name, st.sampled_from([None, "*.jsonl"]))
def test_a_file_may_have_any_name_except_those_of_splits(
    job: Any, tmp_path_factory: Any, name: bytes, path: str | None
) -> None:
    claim = tmp_path_factory.mktemp("claim")
    file = Path(os.fsdecode(os.fsencode(claim) + b"/" + name + b".jsonl"))
    file.write_text('{"text": "a"}\n{"text": 1}\n')
    found = find(job, claim, path)
    assert [where for where, _ in row_files.read_rows(found.files)] == [
        f"{found.files[0][1]}, line {n}" for n in (1, 2)
    ]
    for shown in (found.summarize(), str(found.report()), *names(found)):
        shown.encode()


class TestWhatIsNoFile:
    @pytest.mark.parametrize("path", ["b.jsonl", None, "*.jsonl", "**/b*.jsonl"])
    @pytest.mark.parametrize("kind", ["pipe", "dangling link", "circular link"])
    def test_a_missing_or_special_file_is_refused_however_it_is_found(
        self, job: Any, tmp_path: Path, kind: str, path: str | None
    ) -> None:
        make(tmp_path, "a.jsonl")
        if kind == "pipe":
            os.mkfifo(tmp_path / "b.jsonl")
        else:
            (tmp_path / "b.jsonl").symlink_to("gone.jsonl" if kind == "dangling link" else "b.jsonl")
        with pytest.raises(HoneError, match=r"neither a file|a link to a file that does not exist") as refused:
            find(job, tmp_path, path)
        assert "b.jsonl" in refused.value.message

    def test_linked_files_and_folders_are_read_once(self, job: Any, tmp_path: Path) -> None:
        make(tmp_path, "blobs/0", "set/sub/a.jsonl")
        (tmp_path / "set/b.jsonl").symlink_to("../blobs/0")
        (tmp_path / "set/sub/loop").symlink_to(tmp_path / "set")
        assert names(find(job, tmp_path, "set")) == ["b.jsonl", "sub/a.jsonl"]

    @pytest.mark.parametrize(
        ("name", "remedy"), [("a.jsonl.gz", "Unpack"), ("a.ndjson", "Rename it to .jsonl"), ("a.tsv", "commas")]
    )
    def test_an_unknown_ending_is_refused_with_a_remedy(self, job: Any, tmp_path: Path, name: str, remedy: str) -> None:
        with pytest.raises(HoneError) as refused:
            find(job, make(tmp_path, name), name)
        assert remedy in refused.value.remedy


class TestWhatArrowCannotStore:
    """Rows that pass the checks of their format, and that Arrow refuses all the same."""

    @pytest.mark.parametrize("number", [1, 2, 50])
    def test_the_row_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        monkeypatch.setattr(formats, "shape_row", lambda where, row, layout, counts=None: row)
        monkeypatch.setattr(formats, "check_kind", lambda *_: None)
        rows = [{"text": "ok"}] * 60
        rows[number - 1] = {"text": "a\ud83d"}
        path = tmp_path / "a.jsonl"
        path.write_text("")
        monkeypatch.setattr(FileStream, "__call__", lambda self: ((f"line {n}", r) for n, r in enumerate(rows, 1)))
        layout = formats.detect_layout("text", {}, {"text": 1}, {"text": "ok"}, join_parts=False)
        first = ("line 1", {"text": "ok"})
        with pytest.raises(HoneError) as refused:
            dataset._store_rows(FileStream([(path, path.name)]), layout, first, MessageCounts(), tmp_path / "0")
        assert refused.value.reason.name == "DatasetInvalid"
        assert f"line {number} " in refused.value.message
        assert isinstance(refused.value.__cause__, DatasetGenerationError)


odd = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, -1, 2**63, 2**70, 0.5, float("nan"), "", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "a", "b"]), inner, max_size=2),
    max_leaves=3,
)
message = st.builds(
    lambda role, content, more: {"role": role, "content": content} | more,
    st.sampled_from(["user", "assistant", "system", "tool"]),
    st.sampled_from(["hi", "ho", ""]) | odd,
    st.dictionaries(st.sampled_from(["tool_calls", "name", "thinking", "weight", "x"]), odd, max_size=1),
)
odd_rows = st.builds(
    lambda value, more: {"messages": value} | more,
    st.lists(message, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["tools", "system", "text", "x", "weight"]), odd, max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(odd_rows, min_size=1, max_size=3))
def test_any_content_of_a_row_is_loaded_or_refused_by_name(job: Any, tmp_path: Path, rows: list[Any]) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DatasetSource.model_validate({"claim": {"name": "data", "path": "a.jsonl"}})
    inputs = JobInputs(FineTuneJob.model_validate(job()), {"data": tmp_path}, {}, {})
    try:
        found = dataset.load_rows(
            dataset.locate_dataset(NamedDataset(source), inputs, None), 42, Path(tempfile.mkdtemp(dir=tmp_path))
        )
    except HoneError as error:
        refused = error.reason.name
        assert refused in ("DatasetInvalid", "DatasetColumnMissing", "InvalidSpec")
    else:
        assert len(found.train) == len(rows)


def test_rows_of_csv_with_another_separator_get_a_hint(job: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt;completion\na;b\n")
    source = DatasetSource.model_validate({"claim": {"name": "data", "path": "a.csv"}})
    inputs = JobInputs(FineTuneJob.model_validate(job()), {"data": tmp_path}, {}, {})
    with pytest.raises(HoneError) as refused:
        dataset.load_rows(dataset.locate_dataset(NamedDataset(source), inputs, None), 42, tmp_path / "scratch")
    assert refused.value.reason.name == "DatasetColumnMissing"
    assert "separated by semicolons" in refused.value.remedy


def test_the_report_has_the_names_of_files(job: Any, tmp_path: Path) -> None:
    make(tmp_path, *(f"{number:03}.jsonl" for number in range(30)), "test.jsonl")
    found = find(job, tmp_path, None)
    report = found.report()
    assert (len(report["files"]), report["file_count"], report["left_out_files"]) == (20, 30, ["test.jsonl"])
    assert found.summarize().endswith("004.jsonl and 25 more; left out: test.jsonl")
    assert json.dumps(report)
