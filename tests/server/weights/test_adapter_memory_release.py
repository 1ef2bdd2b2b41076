"""A removed adapter leaves nothing in memory, once its last answer has ended."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hone_server.artifacts.sources import ModelEntry, ModelSources
from hone_server.model_registry import ModelRegistry

LONG = 200


@pytest.fixture
def service(base_folder: Path) -> Iterator[Any]:
    served = ModelEntry("base", "base", str(base_folder))
    service = ModelRegistry(
        ModelSources(str(base_folder), None, None, [served]), max_model_len=512, hot_swaps_adapters=True
    )
    yield service
    service.stop()


def loops() -> Any:
    return [thread for thread in threading.enumerate() if "_run_generation_loop" in thread.name]


async def answer(model: Any, begun: asyncio.Event | None = None) -> Any:
    """Return the tokens of a long answer; once it has begun the caller may take the adapter away."""
    tokens: list[int] = []
    async with aclosing(
        model.handle.generate(
            [5, 6, 7], replace(model.default_params, temperature=0), LONG, stream=True, ignore_eos=True
        )
    ) as out:
        async for chunk in out:
            tokens += chunk.token_ids
            if begun:
                begun.set()
    return tokens


async def gone(reference: Any) -> bool:
    for _ in range(100):
        gc.collect()
        if reference() is None:
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=["unmerged", "merged"])
def test_an_adapter_is_freed_when_its_last_answer_has_ended(
    service: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path, lora: dict[str, Any]
) -> None:
    folders = [str(adapter_maker(tmp_path / str(seed), base_folder, seed=seed, **lora)) for seed in (1, 2)]

    async def run() -> None:
        await service.load_models()
        before = len(loops())
        for number, folder in enumerate(folders):
            await service.load_adapter(f"adapter-{number}", folder, replaces=False)
        # Ask both at once, so that their shared stack is made.
        begun = [asyncio.Event() for _ in folders]
        answers = [
            asyncio.create_task(answer(service.get_model(f"adapter-{number}"), event))
            for number, event in enumerate(begun)
        ]
        for event in begun:
            await event.wait()
        weights = weakref.ref(weights_of(service.get_model("adapter-0")))
        await service.unload_adapter("adapter-0")
        assert weights() is not None
        ended = await asyncio.gather(*answers)
        del answers
        assert [len(tokens) for tokens in ended] == [LONG, LONG]
        assert await gone(weights)
        assert weights_of(service.get_model("adapter-1")) is not None
        await service.unload_adapter("adapter-1")
        for _ in range(100):
            if len(loops()) == before:
                break
            await asyncio.sleep(0.05)
        assert len(loops()) == before
        assert len(await answer(service.get_model("base"))) == LONG

    asyncio.run(run())


def weights_of(model: Any) -> Any:
    """Return what must be freed: a tensor of the adapter, or the engine with the merged model."""
    adapter = model.handle._adapter
    return next(iter(adapter.weights.values()))[0] if adapter else model.handle.engine
