"""How long an engine's end may take, so that no request is lost and no answer is cut."""

GRACE_SECONDS = 600
"""After this the kubelet kills it, whatever it still answers."""
DRAIN_SECONDS = 10
"""For so long it still takes requests: until every node knows that no more are to be sent to it."""
LATEST_SECONDS = 60
"""For so much longer while requests still come."""
FINISHING_SECONDS = GRACE_SECONDS - DRAIN_SECONDS - LATEST_SECONDS - 30
"""Left to the answers that run; the rest is for a clean end."""
SLEEP = {"sleep": {"seconds": DRAIN_SECONDS}}
"""The preStop hook of engines that end at once when they are told to."""
