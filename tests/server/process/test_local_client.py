"""The Python client on this machine, from training to an answer, with a real trainer and engine."""

from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import trl
from hone import Client, ClientError, JobFailedError
from hone_api.artifacts.proof import prove

ROWS = [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello world"}]}] * 8
TRAINING = {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = Client(local=True, folder=tmp_path)
    yield made
    for service in made.services():
        service.delete()


def test_a_job_is_trained_followed_pulled_served_and_asked(client: Client, base_folder: Path, tmp_path: Path) -> None:
    job = client.train(
        name="greeting",
        model=base_folder,
        dataset=ROWS,
        lora=peft.LoraConfig(r=4, target_modules="all-linear"),
        training=trl.SFTConfig(use_cpu=True, bf16=False, **TRAINING),
        resources={"gpus": 0},
    )
    seen = list(job.progress())
    assert [seen[-1].stage, seen[-1].percent, seen[-1].step] == ["Succeeded", 100, 4]
    job.wait()
    assert job.read()["spec"]["lora"] == {"r": 4, "loraAlpha": 8}
    assert "trainLoss" in job.metrics
    assert "</html>" in job.report().html
    assert any("saved adapter" in line for line in job.logs(follow=True))
    assert "polyline" in job._repr_html_()

    folder = job.pull(tmp_path / "out")
    proof = prove(folder)
    assert proof is not None
    assert proof.manifest.digest == job.artifact["digest"]

    with client.serve(job) as service:
        assert [model.id for model in service.models()] == ["tiny-llama", "greeting"]
        assert service.chat("hello")
        assert service.chat([{"role": "user", "content": "hello"}], model="tiny-llama")


def test_another_client_finds_the_job_and_resumes_it(client: Client, base_folder: Path, tmp_path: Path) -> None:
    long = TRAINING | {"max_steps": 2000}
    job = client.train(name="long", model=base_folder, dataset=ROWS, training=long, resources={"gpus": 0})
    next(moment for moment in job.progress() if moment.step)
    job.suspend()
    assert job.stage == "Suspended"
    with pytest.raises(ClientError, match=r"job\.resume\(\)"):
        job.wait()
    (again,) = Client(local=True, folder=tmp_path).jobs()
    again.resume()
    next(moment for moment in again.progress() if moment.step)
    again.delete(with_claim=True)
    assert client.jobs() == []
    assert not (tmp_path / "long").exists()


def test_a_failure_is_an_exception_with_its_reason(client: Client, base_folder: Path) -> None:
    job = client.train(model=base_folder, dataset=[{"words": "x"}], resources={"gpus": 0})
    with pytest.raises(JobFailedError, match="words") as caught:
        job.wait()
    assert caught.value.failure == "DatasetColumnMissing"
