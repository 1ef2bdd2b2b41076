"""The catalogue of failures: names, exit codes and messages on which a user can act."""

import re

import pytest
from hone_api.exit_codes import INTERRUPTED_EXIT_CODE, USER_MISTAKES
from hone_api.reasons import CATALOGUE, HoneError, Reason

RETRIED = {
    "InternalError": 70,
    "HubUnreachable": 71,
    "StoreUnreachable": 71,
    "SourceChanged": 71,
    "DiskFull": 74,
    "Interrupted": 75,
}


@pytest.mark.parametrize("reason", CATALOGUE.values(), ids=CATALOGUE)
def test_a_reason_has_a_meaning_and_a_remedy(reason: Reason) -> None:
    assert re.fullmatch(r"([A-Z][a-z]+)+", reason.name)
    assert re.fullmatch(r"[A-Z].*\.", reason.cause)
    assert re.fullmatch(r"[A-Z].*\.", reason.remedy)


def test_exit_codes_show_whether_a_retry_can_help() -> None:
    codes = {name: reason.exit_code for name, reason in CATALOGUE.items() if reason.exit_code is not None}
    assert {name: code for name, code in codes.items() if code not in USER_MISTAKES} == RETRIED
    assert list(USER_MISTAKES) == [64, 65, 66, 67, 68, 69]
    assert set(USER_MISTAKES) <= set(codes.values())


def test_an_exit_code_has_one_meaning() -> None:
    shared = {
        65: {"Dataset", "Chat", "All", "Artifact", "Adapter", "Destination"},
        66: {"Model", "Dataset", "Artifact", "Destination"},
        67: {"Hub", "Store", "Volume"},
        68: {"Non", "Merge"},
        69: {"Model", "Out", "Gpu"},
        71: {"Hub", "Store", "Source"},
    }
    by_code: dict[int, list[str]] = {}
    for reason in CATALOGUE.values():
        if reason.exit_code is not None:
            by_code.setdefault(reason.exit_code, []).append(reason.name)
    for code, names in by_code.items():
        subjects = {re.match("[A-Z][a-z]+", name)[0] for name in names}  # type: ignore[index]
        assert len(names) == 1 or subjects <= shared[code], (code, names)


def test_an_interruption_is_not_a_users_mistake() -> None:
    assert CATALOGUE["Interrupted"].exit_code == INTERRUPTED_EXIT_CODE
    assert INTERRUPTED_EXIT_CODE not in USER_MISTAKES


def test_an_error_reads_as_what_was_found_then_what_to_do() -> None:
    error = HoneError(CATALOGUE["DatasetEmpty"], "spec.dataset.split is train, and it has no rows.")
    assert error.format_message() == (
        "spec.dataset.split is train, and it has no rows. Check spec.dataset.split, maxSamples and the file."
    )
    assert HoneError(CATALOGUE["DatasetEmpty"], "x", remedy="Do y.").format_message() == "x. Do y."
