"""lm-evaluation-harness: a multiple-choice task against the engine has the figures of its own `hf` backend."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

WORDS = "hello world how are you today we tune large models the quick brown fox jumps over lazy dog".split()
QUESTIONS = 12
TASK = """
task: hone_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
num_fewshot: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a folder with the task; some choices have one token, some several."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for number in range(QUESTIONS):
        words = [WORDS[(number * step + step) % len(WORDS)] for step in (1, 3, 5, 7, 11)]
        choices = [words[2], " ".join(words[2:4]), " ".join(words[3:]), words[4] + "!"]
        rows.append({"question": " ".join(words[:2]), "choices": choices, "answer": number % 4})
    data = folder / "words.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "words.yaml").write_text(TASK.format(data=data))
    return folder


def run_command(tasks: Any, folder: Any, endpoint: Any, tokenizer: Any) -> Any:
    """Run `lm_eval` against the server; return its figures and its samples."""
    served = f"model={endpoint.model},base_url={endpoint.url}/completions,tokenizer={tokenizer},max_retries=1"
    words = [Path(sys.executable).with_name("lm_eval"), "run", "--model", "local-completions", "--model_args", served]
    words += ["--tasks", "hone_words", "--include_path", tasks, "--batch_size", "4"]
    words += ["--output_path", folder, "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets"), "OPENAI_API_KEY": endpoint.key}
    run = subprocess.run(words, env=os.environ | offline, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-4000:]
    [results], [samples] = folder.rglob("results_*.json"), folder.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["hone_words"], rows


def run_own_backend(tasks: Any, model: Any) -> Any:
    """Let the harness compute the same task with transformers; return its figures and its samples."""
    found = lm_eval.simple_evaluate(
        "hf",
        model_args=f"pretrained={model},dtype=float32",
        tasks=["hone_words"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=4,
        device="cpu",
    )
    return found["results"]["hone_words"], found["samples"]["hone_words"]


def test_its_figures_are_those_of_its_own_backend(
    tasks: Any, endpoint: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "own")
    figures, samples = run_command(tasks, tmp_path, endpoint, base_folder)
    own_figures, own_samples = run_own_backend(tasks, base_folder)
    for name in ("acc,none", "acc_norm,none"):
        assert figures[name] == own_figures[name]
    assert len(samples) == len(own_samples) == QUESTIONS
    for sample, own in zip(by_question(samples), by_question(own_samples), strict=True):
        assert [is_greedy for _, is_greedy in sample] == [is_greedy for _, is_greedy in own]
        assert [logprob for logprob, _ in sample] == pytest.approx([logprob for logprob, _ in own], abs=1e-3)


def by_question(samples: Any) -> Any:
    """Return, for each question, the log probability of each choice, and whether it is the greedy answer."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [[(float(logprob), str(greedy)) for logprob, greedy in sample["filtered_resps"]] for sample in ordered]
