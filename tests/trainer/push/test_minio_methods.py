"""The undocumented methods of minio are as s3_store.py calls them, and no other module uses any."""

import inspect
import re
from pathlib import Path

import hone_trainer
import minio
import pytest
from hone_trainer.push import s3_store
from hone_trainer.push.s3_store import MULTIPART_METHODS

PRIVATE_CALL = re.compile(r"_client\.(_[a-z]\w*)")


@pytest.mark.parametrize("name", MULTIPART_METHODS)
def test_methods_have_the_expected_parameters(name: str) -> None:
    expected = MULTIPART_METHODS[name].split()
    found = list(inspect.signature(getattr(minio.Minio, name)).parameters)[1:]
    assert found[: len(expected)] == expected


def test_one_module_calls_them() -> None:
    folder = Path(hone_trainer.__file__).parent
    called = {path: set(PRIVATE_CALL.findall(path.read_text())) for path in folder.rglob("*.py")}
    assert {path for path, names in called.items() if names} == {Path(s3_store.__file__)}
    assert called[Path(s3_store.__file__)] == set(MULTIPART_METHODS)
