"""Remove the PodDisruptionBudgets that only a running operator makes harmless; the chart runs this after an uninstall.

The budget of a single engine allows no disruption: the operator starts a second engine elsewhere when a node is
drained. Without an operator such a budget blocks the drain without end. The engines themselves continue to serve.
"""

import argparse
import asyncio
import logging
import sys

import aiohttp
from hone_api.layout import INFERENCESERVICE_LABEL, MANAGED_BY_LABEL, MANAGER

from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import BUDGETS
from hone_operator.observability import logs
from hone_operator.observability.metrics import Metrics

logger = logging.getLogger(__name__)

SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER},{INFERENCESERVICE_LABEL}"


async def remove_budgets(api: Api, namespaces: list[str]) -> dict[str, ApiError]:
    """Delete the budgets of engines in these namespaces, "" for all, and return the refusals, by namespace.

    Raises as Api does where the API server does not answer.
    """
    removed = 0
    refusals = {}
    for namespace in namespaces:
        try:
            async for budget in api.iterate_items(BUDGETS, namespace, labelSelector=SELECTOR):
                metadata = budget["metadata"]
                await api.delete(BUDGETS, metadata["namespace"], metadata["name"], metadata["uid"])
                logger.info("Deleted PodDisruptionBudget %s/%s", metadata["namespace"], metadata["name"])
                removed += 1
        except ApiError as error:
            refusals[namespace] = error
    logger.info("PodDisruptionBudgets deleted: %d", removed)
    return refusals


def main(argv: list[str] | None = None) -> None:
    """Remove the budgets. Exits with 1 when the API server refuses or does not answer."""
    parser = argparse.ArgumentParser(prog="hone_operator.uninstall", description="Remove the budgets of engines.")
    parser.add_argument("--namespace", action="append", help="only in this namespace; may be repeated (default: all)")
    namespaces = parser.parse_args(argv).namespace or [""]
    logs.set_up_logging("info", "text")
    try:
        refusals = asyncio.run(_connect_and_remove(namespaces))
    except (aiohttp.ClientError, TimeoutError) as error:
        sys.exit(f"The API server does not answer: {error or 'no answer in time'}. {_make_remedy(namespaces)}")
    if refusals:
        text = "; ".join(str(error) for error in refusals.values())
        sys.exit(
            f"The API server refused to list or delete PodDisruptionBudgets: {text}. {_make_remedy(list(refusals))}"
        )


def _make_remedy(namespaces: list[str]) -> str:
    commands = (
        f"kubectl delete poddisruptionbudgets {f'-n {namespace}' if namespace else '-A'} -l {SELECTOR}"
        for namespace in namespaces
    )
    return "Delete the budgets yourself: " + "; ".join(commands)


async def _connect_and_remove(namespaces: list[str]) -> dict[str, ApiError]:
    api = await Api.connect(Metrics())
    try:
        return await remove_budgets(api, namespaces)
    finally:
        await api.close()


if __name__ == "__main__":
    main()
