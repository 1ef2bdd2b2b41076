"""During an upgrade a roll-out delays those of other services only while it progresses, and never for long."""

from datetime import UTC, datetime, timedelta

import pytest
from hone_operator.inferenceservice.rollouts import MAX_TURN, UPGRADE_ANNOTATION, list_upgrade_rollouts
from hone_operator.objects.resources import Object
from hone_operator.objects.timestamps import format_timestamp

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
JUST_NOW = format_timestamp(NOW - timedelta(minutes=1))


def rolling(mark: str | None = JUST_NOW, **spec: object) -> Object:
    """Return a Deployment whose roll-out is under way."""
    metadata: Object = {"name": "faq", "namespace": "team", "generation": 2}
    metadata["annotations"] = {UPGRADE_ANNOTATION: mark} if mark else {}
    return {"metadata": metadata, "spec": {"replicas": 1, **spec}, "status": {"observedGeneration": 1}}


def test_a_roll_out_that_progresses_has_its_turn() -> None:
    assert list_upgrade_rollouts([rolling()], NOW)


@pytest.mark.parametrize(
    "deployment",
    [
        rolling(None),
        rolling(paused=True),
        rolling(format_timestamp(NOW - MAX_TURN)),
        rolling(format_timestamp(NOW + timedelta(days=1))),
        rolling("true"),
        rolling("2026-03-01"),
        rolling("2026-03-01T11:59:00"),
        rolling("9999-12-31T23:59:59+00:00"),
    ],
    ids=["no mark", "paused", "an hour ago", "in the future", "no time", "no hour", "no zone", "last of times"],
)
def test_any_other_deployment_delays_nobody(deployment: Object) -> None:
    assert not list_upgrade_rollouts([deployment], NOW)
