"""With `profile: none`, what the model is given to learn is what a plain TRL script gives it, for any dataset.

Or Hone refuses the dataset with a named reason, or warns: differences.py lists when. Cases are generated; a failure
prints the smallest one.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hone_api.reasons import HoneError
from hypothesis import Phase, given, settings
from long_matrix import is_long
from parity import hone_side, trl_side
from parity.cases import cases
from parity.differences import change, compare
from parity.learned import Case, Learned
from parity.tokenizing import save_models
from transformers import AutoModelForCausalLM, PreTrainedModel

# Hundreds of cases are one test, and the libraries warn of the same options in each of them.
pytestmark = [pytest.mark.timeout(0), pytest.mark.filterwarnings("ignore")]

# The number of cases: False for a sample, True for a run with all of them.
CASES = {False: 300, True: 6000}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def network(models: dict[str, Path]) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(next(iter(models.values())))
    return found


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use one thread, and silence the libraries."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    monkeypatch.setattr("datasets.utils.tqdm._tqdm_disabled", True, raising=False)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(before)


def test_hone_learns_the_same_as_trl(models: dict[str, Path], network: PreTrainedModel) -> None:
    @settings(max_examples=CASES[is_long()])
    @given(cases())
    def check(case: Case) -> None:
        with TemporaryDirectory() as folder:
            compare(*learn(case, models[case.tokenizer], network, Path(folder)))

    check()


def test_excluding_a_message_also_excludes_what_is_marked_with_it(
    models: dict[str, Path], network: PreTrainedModel, tmp_path: Path
) -> None:
    turns = [
        {"role": "user", "content": "the question"},
        {"role": "assistant", "content": "a wrong answer", "weight": 0},
        {"role": "user", "content": "asked again"},
        {"role": "assistant", "content": "the right answer"},
    ]
    case = Case("messages", [{"messages": turns}], "plain", "qwen3_training", training={"assistantOnlyLoss": True})
    ours, theirs = learn(case, models["plain"], network, tmp_path)
    compare(ours, theirs)
    assert isinstance(theirs, Learned)
    learned = [text for text, is_learned in theirs.first_row if is_learned]
    assert learned == ["<think>\n\n</think>\n\nthe right answer<|im_end|>\n"]


@pytest.mark.parametrize(
    ("purpose", "are_excluded", "training", "options"),
    [("train", [True], {"packing": True}, {}), ("evaluate", [False, True], {}, {"evalFraction": 0.5})],
)
def test_rows_with_only_excluded_messages_are_refused(
    models: dict[str, Path],
    network: PreTrainedModel,
    tmp_path: Path,
    purpose: str,
    are_excluded: list[bool],
    training: dict[str, Any],
    options: dict[str, Any],
) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": "the question"}],
            "completion": [{"role": "assistant", "content": "an answer", "train": not is_excluded}],
        }
        for is_excluded in are_excluded
    ]
    case = Case("prompt-completion", rows, "plain", "eos", training=training, options=options)
    ours, theirs = learn(case, models["plain"], network, tmp_path)
    assert isinstance(ours, HoneError)
    assert ours.message == f"None of 1 rows to {purpose} on has a token to learn from"
    assert "which messages have weight: 0 or train: false" in ours.format_message()
    assert isinstance(theirs, Learned)
    compare(ours, theirs)


def test_a_failing_case_is_printed() -> None:
    @settings(max_examples=1, phases=[Phase.generate])
    @given(cases())
    def fail(case: Case) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError) as found:
        fail()
    assert "case=Case(form=" in "\n".join(found.value.__notes__)


def learn(
    case: Case, model: Path, network: PreTrainedModel, folder: Path
) -> tuple[Learned | HoneError, Learned | Exception]:
    """Return what Hone and TRL learn, or how they fail."""
    ours: Learned | HoneError
    theirs: Learned | Exception
    try:
        ours = hone_side.learn(case, model, folder / "hone")
        case = change(case, ours.warnings)
    except HoneError as error:
        ours = error
    try:
        theirs = trl_side.learn(case, network, model, folder / "trl")
    except Exception as error:
        theirs = error
    return ours, theirs
