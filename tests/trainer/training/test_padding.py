"""The share of padding in a batch: the figures of docs/performance.md about profile auto, measured again."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
GROUPED = {"train_sampling_strategy": "group_by_length"}


@pytest.mark.parametrize(("flash", "name"), [(True, "packed"), (False, "grouped")])
def test_the_page_states_the_share_of_tokens_that_are_not_padding(
    flash: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for module in ("common", "limits", "padding"):  # other folders may have modules with the same names
        monkeypatch.delitem(sys.modules, module, raising=False)
    import limits
    import padding

    case = next(
        case for case in padding.make_cases() if case.method == "lora" and case.flash == flash and "auto" in case.name
    )
    choices, shares = padding.measure_padding(case, padding.make_model(tmp_path / "model"), 1)
    chosen = {choice.field: choice.value for choice in choices}
    assert chosen == ({"packing": True, "per_device_train_batch_size": 3} if flash else GROUPED)
    assert shares[0] == pytest.approx(limits.SHARES[name], abs=0.01)
    assert shares[0] >= padding.GOAL
