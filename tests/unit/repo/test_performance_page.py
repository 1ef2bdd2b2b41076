"""The arithmetic of docs/performance.md, and that the page has its results."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def load_limits() -> Any:
    """benchmarks/limits.py, which is in no package."""
    spec = spec_from_file_location("limits", ROOT / "benchmarks/limits.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules["limits"] = module
    spec.loader.exec_module(module)
    return module


limits = load_limits()


def test_the_page_has_the_tables_that_are_computed() -> None:
    page = limits.PAGE.read_text()
    assert limits.fill_page(page) == page, "run .venv/bin/python benchmarks/limits.py --write"


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="no place for work"):
        limits.fill_page("# Performance\n")


def test_parameters_are_those_of_llama_2_7b() -> None:
    assert limits.LLAMA.total == 6_738_415_616
    assert limits.LLAMA.products == 6_476_005_376 + 131_072_000


def test_flops_are_those_of_a_layer_counted_product_by_product() -> None:
    layer = limits.ModelShape(hidden=8, layers=1, intermediate=12, vocabulary=20, adapter=0)
    linear = 4 * 8 * 8 + 3 * 8 * 12 + 8 * 20
    assert limits.count_token_flops("full", False, layer) == 6 * linear
    assert limits.count_token_flops("full", True, layer) == 8 * linear
    assert limits.count_token_flops("lora", False, layer) == 4 * linear
    # Each of 3 tokens reads itself and those before it: 6 pairs, two products of 8 multiplications and additions.
    assert limits.count_attention_flops(3, False, layer) == 3 * 6 * 2 * 2 * 8


def test_an_adapter_costs_its_own_forward_and_backward() -> None:
    assert limits.count_token_flops("lora", False) == 4 * limits.LLAMA.products + 6 * limits.LLAMA.adapter


def test_rows_a_second_fall_with_padding_and_with_slower_products() -> None:
    best = limits.compute_rows_per_second("lora", limits.BFLOAT16, 1.0)
    assert (
        best
        > limits.compute_rows_per_second("lora", limits.BFLOAT16, 0.9)
        > limits.compute_rows_per_second("lora", limits.FLOAT32, 0.9)
    )
    assert best == pytest.approx(limits.BFLOAT16 * 1e12 / limits.count_row_flops("lora"), rel=0.005)


def test_no_limit_is_below_what_the_how_to_reached() -> None:
    for method, (reached, _) in limits.HOW_TO.items():
        share = limits.SHARES["how-to"]
        assert reached < limits.compute_rows_per_second(method, limits.FLOAT32, share, limits.HOW_TO_ROWS, 4)


def test_compute_units_are_full_where_tiles_are_a_multiple_of_them() -> None:
    assert limits.compute_busy_share(limits.TILE * limits.UNITS, limits.TILE) == 1
    assert limits.compute_busy_share(1, 1) == pytest.approx(1 / limits.UNITS)
    assert limits.compute_busy_share(limits.TILE * (limits.UNITS + 1), limits.TILE) == pytest.approx(0.5, abs=0.01)


def test_a_mask_over_a_packed_batch_costs_more_than_it_saves() -> None:
    for method in ("lora", "full"):
        assert limits.compute_masked_gain(method, limits.SLOW) < limits.compute_masked_gain(method, 1) < 1
        # Were attention free, packing would save the padding.
        assert limits.compute_masked_gain(method, 0) == pytest.approx(
            limits.SHARES["packed"] / limits.SHARES["grouped"]
        )


def test_lengths_are_guanacos() -> None:
    lengths = [int(length) for length in limits.LENGTHS.read_text().split()]
    assert (len(lengths), sum(lengths), sorted(lengths)[500]) == (1000, 462_907, 376)
    assert max(limits.cut_lengths()) == limits.LIMIT
