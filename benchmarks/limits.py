"""What one MI300X can do at most with AMD's how-to, by arithmetic: the tables of docs/performance.md.

Llama 2 7B on guanaco-llama2-1k, method lora (rank 64 on q_proj and v_proj) and full. Nothing is measured here. Prints
the tables, or writes them into the page with --write.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/performance.md"
LENGTHS = Path(__file__).with_name("guanaco_lengths.txt")
# Tokens that a row is cut to, in the how-to and here.
LIMIT = 1024

# Peak TFLOP/s of dense matrix products: data sheet of the MI300X.
FLOAT32, BFLOAT16 = 163.4, 1307.4
# TFLOP/s of the best bfloat16 product that AMD measured: rocm.blogs.amd.com, Measuring Max-Achievable FLOPs part 2.
ACHIEVABLE = 708.0
# Share of that which a fixed mix of products reaches: AMD's figure of an MI325X (Completing the GPU Performance
# Picture: 616 of 831).
TYPICAL = 0.74
# TB/s of the MI300X's HBM: data sheet.
BANDWIDTH = 5.3
# GB/s in each direction of 16 lanes of PCI Express 5.
LINK = 64.0
# Compute units of an MI300X.
UNITS = 304
# Rows and columns of the result that one compute unit works on at once; libraries choose from several sizes.
TILE = 128

# Tokens that the profile packs into one batch, which is one row: benchmarks/padding.py.
PACKED = 3 * LIMIT

# Times that an attention kernel may be slower than products: an example, not a measurement.
SLOW = 10

# Rows a second and seconds of AMD's how-to.
HOW_TO = {"lora": (5.063, 197.5), "full": (2.384, 419.5)}
HOW_TO_STEPS = 125
# Rows that each process computes at once.
HOW_TO_ROWS = 4

# Computed tokens that are of rows, by benchmarks/padding.py: the how-to, TRL's defaults, and the profile without and
# with FlashAttention.
SHARES = {
    "how-to": 0.983,
    "default": 0.476,
    "grouped": 0.976,
    "packed": 1.0,
}


@dataclass(frozen=True)
class ModelShape:
    """A Llama without shared heads. `adapter`: parameters of LoRA."""

    hidden: int = 4096
    layers: int = 32
    intermediate: int = 11008
    vocabulary: int = 32000
    adapter: int = 33_554_432

    @property
    def products(self) -> int:
        """Return the parameters that a token is multiplied with: the linear layers and the output head."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.hidden * self.vocabulary

    @property
    def total(self) -> int:
        """Return all parameters, including the embedding and the norms."""
        return self.products + self.hidden * self.vocabulary + (2 * self.layers + 1) * self.hidden


LLAMA = ModelShape()


def count_token_flops(method: str, recompute: bool, model: ModelShape = LLAMA) -> float:
    """Return the FLOPs of the matrix products for one token.

    Forward 2 per parameter; backward 2 for the inputs, and 2 for the weights if they are trained.
    """
    forward, inputs, weights = 2 * model.products, 2 * model.products, 2 * model.products
    if method == "lora":
        weights = 0
    own = 6 * model.adapter if method == "lora" else 0
    again = forward if recompute else 0
    return forward + again + inputs + weights + own


def count_attention_flops(length: int, recompute: bool, model: ModelShape = LLAMA) -> float:
    """Return the FLOPs of causal attention in a row of `length` tokens: two products forward, four backward."""
    forward = 2 * model.hidden * model.layers * length * (length + 1)
    return forward * (4 if recompute else 3)


def count_row_flops(method: str, recompute: bool = False) -> float:
    """Return the FLOPs of a row of guanaco, on average and without padding."""
    lengths = cut_lengths()
    products = count_token_flops(method, recompute) * sum(lengths)
    return (products + sum(count_attention_flops(length, recompute) for length in lengths)) / len(lengths)


def compute_attention_share(method: str) -> float:
    """Return attention's share of a row's FLOPs."""
    lengths = cut_lengths()
    return sum(count_attention_flops(length, False) for length in lengths) / len(lengths) / count_row_flops(method)


def cut_lengths() -> list[int]:
    """Return the tokens of each row of guanaco, cut to LIMIT."""
    return [min(int(length), LIMIT) for length in LENGTHS.read_text().split()]


def compute_optimizer_seconds(method: str, weight_bytes: int) -> float:
    """Return the seconds for AdamW to read weights, gradients and two states, and write all but the gradients."""
    trained = LLAMA.adapter if method == "lora" else LLAMA.total
    return 7 * weight_bytes * trained / (BANDWIDTH * 1e12)


def compute_paged_seconds() -> float:
    """Return the seconds to read and write float32 states in the host's memory, both directions at once."""
    return 8 * LLAMA.total / (LINK * 1e9)


def compute_rows_per_second(method: str, tflops: float, share: float, rows: int = 8, weight_bytes: int = 2) -> float:
    """Return rows a second if products run at `tflops`, padding is computed, and the optimizer follows each step."""
    step = rows * count_row_flops(method) / share / (tflops * 1e12) + compute_optimizer_seconds(method, weight_bytes)
    return rows / step


def compute_busy_share(tokens: float, width: int) -> float:
    """Return the share of the compute units that work when a result of tokens by width is cut into tiles."""
    tiles = -(-tokens // TILE) * -(-width // TILE)
    return tiles / (UNITS * -(-tiles // UNITS))


def make_flops_table() -> str:
    """Return the table of FLOPs."""
    lines = ["| method | GFLOP a token | TFLOP a row | of it attention | with activations recomputed |", make_rule(5)]
    for method in HOW_TO:
        again = count_row_flops(method, True) / count_row_flops(method)
        lines.append(
            f"| `{method}` | {count_token_flops(method, False) / 1e9:.1f} | {count_row_flops(method) / 1e12:.1f} | "
            f"{compute_attention_share(method):.1%} | {again:.2f} times |"
        )
    return "\n".join(lines)


def make_how_to_table() -> str:
    """Return the table of the how-to's results."""
    head = "| run | rows a second | TFLOP/s, padding included | of float32's peak: one GPU; two | of bfloat16's peak |"
    lines = [head, make_rule(5)]
    for method, (rate, _) in HOW_TO.items():
        done = rate * count_row_flops(method) / SHARES["how-to"] / 1e12
        parts = f"{done / FLOAT32:.0%}; {done / 2 / FLOAT32:.0%} | {done / BFLOAT16:.1%}"
        lines.append(f"| `{method}` | {rate} | {done:.0f} | {parts} |")
    return "\n".join(lines)


def make_limits_table() -> str:
    """Return the table of rows a second at most."""
    ways = (
        ("float32 at its peak, the how-to's batches", FLOAT32, "how-to", HOW_TO_ROWS, 4),
        ("bfloat16 at its peak, packed", BFLOAT16, "packed", 8, 2),
        ("bfloat16 at AMD's best product, packed", ACHIEVABLE, "packed", 8, 2),
        ("bfloat16 at a typical mix of products, packed", ACHIEVABLE * TYPICAL, "packed", 8, 2),
        ("the same, grouped by length", ACHIEVABLE * TYPICAL, "grouped", 8, 2),
    )
    lines = ["| rows a second at most | TFLOP/s | `lora` | `full` |", make_rule(4)]
    for name, tflops, share, rows, width in ways:
        found = [compute_rows_per_second(method, tflops, SHARES[share], rows, width) for method in HOW_TO]
        lines.append(f"| {name} | {tflops:,.0f} | {found[0]:.1f} | {found[1]:.1f} |")
    return "\n".join(lines)


def make_choices_table() -> str:
    """Return the table of the gain that each choice of the profile should bring."""
    step = HOW_TO["full"][1] / HOW_TO_STEPS
    again = format_by_method(lambda method: count_row_flops(method, True) / count_row_flops(method))
    bigger = format_by_method(
        lambda method: (
            compute_rows_per_second(method, ACHIEVABLE * TYPICAL, 1.0, 8)
            / compute_rows_per_second(method, ACHIEVABLE * TYPICAL, 1.0, HOW_TO_ROWS)
        )
    )
    paged = f"`full`: {compute_paged_seconds():.2f} s of a step of {step:.2f} s; `lora`: none"
    rate = f"{ACHIEVABLE * TYPICAL / FLOAT32:.1f} to {BFLOAT16 / FLOAT32:.1f}"
    rows = [
        ("`bf16`", "float32", "rate of products", rate),
        (
            "`packing`, with FlashAttention",
            "the how-to's grouping",
            "shares of padding",
            format_ratio("packed", "how-to"),
        ),
        (
            "`packing`, with FlashAttention",
            "TRL's order by chance",
            "shares of padding",
            format_ratio("packed", "default"),
        ),
        (
            "`group_by_length`, without it",
            "the how-to's grouping",
            "shares of padding",
            format_ratio("grouped", "how-to"),
        ),
        (
            "`group_by_length`, without it",
            "TRL's order by chance",
            "shares of padding",
            format_ratio("grouped", "default"),
        ),
        ("`activationCheckpointing: false`", "TRL's default", "FLOPs", again),
        ("8 rows a step", "the how-to's 4", "bytes of the optimizer a row", bigger),
        ("AdamW's states in HBM", "paged states that lie in the host's memory", "bytes over PCI Express", paged),
        (
            "FlashAttention in itself",
            f"a kernel {SLOW} times as slow as products",
            "attention's FLOPs",
            format_by_method(compute_attention_gain),
        ),
        (
            "`packing` by a mask, without it: not chosen",
            "`group_by_length`",
            f"padding, and attention over {PACKED:,} tokens at the rate of products; {SLOW} times as slow",
            "; ".join(
                format_by_method(lambda method, times=times: compute_masked_gain(method, times)) for times in (1, SLOW)
            ),
        ),
    ]
    lines = ["| choice of the profile | against | by | times as many rows a second |", make_rule(4)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def compute_attention_gain(method: str) -> float:
    """Return the factor in rows a second of attention at the rate of products, against a slow kernel."""
    return 1 + (SLOW - 1) * compute_attention_share(method)


def compute_masked_gain(method: str, times: int) -> float:
    """Return the factor in rows a second of packing by a mask, against rows that are grouped by length.

    A kernel that takes any mask computes the scores of all pairs of tokens; here that many times as slow as products.
    """
    lengths = cut_lengths()
    pair = 3 * 4 * LLAMA.hidden * LLAMA.layers
    products = count_token_flops(method, False) * sum(lengths)
    packed = products + times * pair * PACKED * sum(lengths)
    grouped = products + times * pair * sum(length**2 for length in lengths)
    return grouped / SHARES["grouped"] / (packed / SHARES["packed"])


def make_tiles_table() -> str:
    """Return the table of how batches without FlashAttention fill the GPU."""
    mean = statistics.fmean(cut_lengths())
    arrangements = ((4, SHARES["how-to"]), (8, SHARES["grouped"]))
    times = [estimate_row_time(rows, mean, share) for rows, share in arrangements]
    wide = "compute units at work: 4,096 wide; 11,008 wide"
    lines = [f"| rows at once | tokens of rows | tokens at once | {wide} | time a row, against 8 rows |", make_rule(5)]
    for (rows, share), time in zip(arrangements, times, strict=True):
        tokens = rows * mean / share
        both = f"{compute_busy_share(tokens, LLAMA.hidden):.0%}; {compute_busy_share(tokens, LLAMA.intermediate):.0%}"
        lines.append(f"| {rows} | {share:.3f} | {tokens:,.0f} | {both} | {time / times[-1]:.2f} |")
    return "\n".join(lines)


def estimate_row_time(rows: int, mean: float, share: float) -> float:
    """Return the time of a row's forward products, in any unit: the parameters of each width over the working units."""
    tokens = rows * mean / share
    narrow = 4 * LLAMA.hidden**2 + LLAMA.hidden * LLAMA.intermediate
    wide = 2 * LLAMA.hidden * LLAMA.intermediate
    return (
        narrow / compute_busy_share(tokens, LLAMA.hidden) + wide / compute_busy_share(tokens, LLAMA.intermediate)
    ) / share


def make_padding_table() -> str:
    """Return the table of padding."""
    names = {
        "how-to": "AMD's how-to: 4 rows, grouped by length",
        "default": "TRL's defaults: 8 rows, order by chance",
        "grouped": "profile `auto` on a GPU without FlashAttention: 8 rows, grouped by length",
        "packed": "profile `auto` on a GPU with FlashAttention: 3 rows of 1,024 tokens, packed",
    }
    lines = ["| batches | computed tokens that are of rows |", make_rule(2)]
    return "\n".join([*lines, *(f"| {names[key]} | {share:.3f} |" for key, share in SHARES.items())])


TABLES = {
    "work": make_flops_table,
    "how-to": make_how_to_table,
    "limits": make_limits_table,
    "levers": make_choices_table,
    "shares": make_padding_table,
    "tiles": make_tiles_table,
}


def fill_page(page: str) -> str:
    """Return the page with every table in its place, between `<!-- table: NAME -->` and `<!-- end -->`."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->", "<!-- end -->"
        before, found, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{PAGE} has no place for {name}: write `{start}`, and `{end}` after it")
        page = f"{before}{start}\n{table()}\n{end}{after}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    if parser.parse_args().write:
        PAGE.write_text(fill_page(PAGE.read_text()))
        return
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")


def make_rule(columns: int) -> str:
    """Return the line below a table's head."""
    return "|" + "---|" * columns


def format_ratio(one: str, other: str) -> str:
    """Return the ratio of two batches' shares."""
    return f"{SHARES[one] / SHARES[other]:.2f}"


def format_by_method(figure: Callable[[str], float]) -> str:
    """Return a figure for each method."""
    return ", ".join(f"`{method}` {figure(method):.2f}" for method in HOW_TO)


if __name__ == "__main__":
    main()
