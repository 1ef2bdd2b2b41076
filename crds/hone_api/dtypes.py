"""Types of weights, for the contract and for command lines, which import no pydantic."""

from typing import Literal, get_args

# Names in torch; auto: as the weights were saved.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

DTYPES: tuple[str, ...] = get_args(Dtype)
