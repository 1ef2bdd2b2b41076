"""The operator, the trainer and the server refuse the same adapters, by one contract."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hone_api.artifacts.adapter_config import ADAPTER_CONFIG
from hone_api.artifacts.adapter_rules import MAX_LORA_RANK, fits_revision, list_refused_settings
from hone_api.finetunejobs.spec import FineTuneJobSpec, LoraOptions
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.reasons import HoneError
from hone_operator.engines import vllm
from hone_operator.engines.registry import select_engine
from hone_operator.inferenceservice.compatibility import _check_kind
from hone_server.artifacts.verify import require_loadable_kind
from hone_trainer.config.sft_config import find_unserved_options

COMMIT, OTHER_COMMIT = "0" * 40, "1" * 40
VLLM = select_engine(
    InferenceServiceSpec.model_validate({"model": {"name": "org/base"}, "engine": "vllm", "resources": {"gpus": 1}})
)
SPEC = {"model": {"name": "org/base"}, "dataset": {"name": "org/data"}, "resources": {"gpus": 1}}


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"use_dora": False, "bias": "none"}, []),
        ({"use_dora": True, "bias": "all"}, ["use_dora", "bias"]),
        ({"use_dora": None, "bias": "none", "peft_type": "LOHA"}, ["peft_type"]),
        ({"use_dora": None, "bias": "none", "modules_to_save": ["lm_head"]}, ["modules_to_save"]),
    ],
)
def test_settings_that_engines_refuse(settings: dict[str, Any], refused: list[str]) -> None:
    assert list_refused_settings(**settings) == refused


@pytest.mark.parametrize(
    ("lora", "is_refused"),
    [({}, False), ({"useDora": True}, True), ({"bias": "all"}, True), ({"r": 512}, False), ({"r": 513}, True)],
)
def test_all_packages_refuse_the_same_adapters(lora: dict[str, Any], is_refused: bool, tmp_path: Path) -> None:
    options = LoraOptions.model_validate(lora)
    config = {"peft_type": "LORA", "r": options.r, "use_dora": options.use_dora, "bias": options.bias}
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config))
    checks = [
        lambda: _check_kind(VLLM, "faq", options),
        lambda: require_loadable_kind("faq", tmp_path, MAX_LORA_RANK),
    ]
    for check in checks:
        if is_refused:
            with pytest.raises(HoneError, match=re.escape("Adapter faq")):
                check()
        else:
            check()
    assert bool(find_unserved_options(FineTuneJobSpec.model_validate({**SPEC, "lora": lora}))) == is_refused


def test_the_largest_rank_is_the_largest_that_vllm_accepts() -> None:
    assert vllm.ACCEPTED_RANKS[-1] == MAX_LORA_RANK


@pytest.mark.parametrize(
    ("trained", "served", "fits"),
    [
        (COMMIT, COMMIT, True),
        (COMMIT, OTHER_COMMIT, False),
        (COMMIT, "main", True),
        (COMMIT, None, True),
        (None, COMMIT, True),
    ],
)
def test_an_adapter_fits_a_revision_unless_another_commit_is_known(
    trained: str | None, served: str | None, fits: bool
) -> None:
    assert fits_revision(trained, served) == fits
