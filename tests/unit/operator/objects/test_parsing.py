"""What the status shows of a value that an object must not have."""

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import HoneError
from hone_operator.objects.parsing import parse_object


def test_a_refused_url_is_shown_without_its_credentials() -> None:
    uri = f"ftp://user:pa55word@example.com/{'rows/' * 40}?X-Amz-Signature=s3cret"
    owner = {"metadata": {"name": "a"}, "spec": {"model": {"name": "a/b"}, "dataset": {"uri": uri}}}
    error = parse_object(FineTuneJob, owner)
    assert isinstance(error, HoneError)
    assert "ftp://…@example.com/rows/" in error.message
    assert "pa55word" not in error.message
    assert "s3cret" not in error.message
