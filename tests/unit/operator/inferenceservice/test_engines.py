"""The arguments of each engine, and services that are refused before a pod is created."""

from typing import Any

import pytest
from hone_operator.engines.sglang import HEALTH_SCRIPT, SglangEngine
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.objects.resources import DEPLOYMENTS, Object
from hone_operator.reconcile.plan import Apply
from observed import DIGEST, IMAGE, NOW, conditions, finished_job, message, observed_service, pod, service_object

MARK = DIGEST[7:19]
COMMIT, OTHER = "c" * 40, "d" * 40
SNAPSHOT = f"/claims/faq/team/faq/cache/hub/models--org--base/snapshots/{COMMIT}"


def adapter_job(name: str = "faq", *, commit: str = COMMIT, parameters: int | None = None, **spec: Any) -> Object:
    job = finished_job(name, **spec)
    job["status"]["artifact"]["baseRevision"] = commit
    if parameters:
        job["status"]["parameters"] = {"trainable": 1, "total": parameters}
    return job


def pod_of(*jobs: Object, gpu: tuple[str, int] | None = None, **spec: Any) -> Object:
    observed = observed_service(service_object(**spec), *jobs, gpu=gpu)
    applied = [
        a for a in plan_inferenceservice(observed, NOW).actions if isinstance(a, Apply) and a.resource is DEPLOYMENTS
    ]
    return dict(applied[0].body["spec"]["template"]["spec"])


def engine_of(*jobs: Object, **spec: Any) -> Object:
    return dict(pod_of(*jobs, **spec)["containers"][0])


def variables(container: Object) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}


def after(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


@pytest.mark.parametrize(
    ("spec", "command", "image"),
    [
        ({}, ["hone-server"], IMAGE),
        ({"resources": {"gpus": 1}}, ["vllm", "serve"], "vllm:test"),
        ({"resources": {"gpus": 1}, "engine": "embedded"}, ["hone-server"], IMAGE),
        ({"engine": "vllm"}, ["vllm", "serve"], "vllm:test"),
        ({"engine": "sglang"}, list(SglangEngine.command), "sglang:test"),
        ({"engine": "tgi"}, ["text-generation-launcher"], "tgi:test"),
        ({"engine": "vllm", "pod": {"image": "mine"}}, ["vllm", "serve"], "mine"),
    ],
)
def test_the_engine_that_is_asked_for(spec: Object, command: list[str], image: str) -> None:
    container = engine_of(adapter_job(), **spec)
    assert (container["command"], container["image"]) == (command, image)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (
            "vllm",
            "/served/model --served-model-name org/base --port 8000 --shutdown-timeout 500 "
            '--allowed-origins ["*"] --dtype bfloat16 '
            "--max-model-len 4096 --tensor-parallel-size 2 --enable-lora --max-loras 4 --max-cpu-loras 32 "
            "--max-lora-rank 64 --middleware hone_gate.Gate --seed=1",
        ),
        (
            "sglang",
            "--model-path /served/model --served-model-name org/base --host 127.0.0.1 --port 8001 --enable-metrics "
            "--dtype bfloat16 --context-length 4096 --tp-size 2 "
            f"--enable-lora --max-loras-per-batch 2 --max-lora-rank 20 --lora-paths faq=/served/adapters/faq-{MARK} "
            f"support=/served/adapters/support-{MARK} --seed=1",
        ),
        (
            "tgi",
            "--model-id /served/model --hostname 0.0.0.0 --port 8000 --dtype bfloat16 --max-total-tokens 4096 "
            f"--num-shard 2 --lora-adapters faq=/served/adapters/faq-{MARK},support=/served/adapters/support-{MARK} "
            "--seed=1",
        ),
        (
            "embedded",
            f"{SNAPSHOT} --name org/base --admin-token-file /served/admin-token --port 8000 --drain-seconds 10 "
            "--max-model-len 4096 --seed=1",
        ),
    ],
)
def test_arguments_of_a_base_with_adapters(engine: str, expected: str) -> None:
    model = {"name": "org/base", "dtype": "bfloat16"}
    jobs = adapter_job(model=model), adapter_job("other", model=model, lora={"r": 20})
    spec: Object = {
        "engine": engine,
        "maxModelLen": 4096,
        "resources": {"gpus": 2},
        "adapters": [{"name": "support", "fineTuneJob": {"name": "other"}}],
        "extraArgs": ["--seed=1"],
    }
    assert " ".join(engine_of(*jobs, **spec)["args"]) == expected


TEMPLATE = "{{ messages[0]['content'] }} costs $(HOME) $5"
CHATTING: Object = {"toolCallParser": "hermes", "reasoningParser": "qwen3", "chatTemplate": TEMPLATE}
KEPT = "--chat-template={{ messages[0]['content'] }} costs $$(HOME) $$5"


@pytest.mark.parametrize(
    ("engine", "fields", "expected"),
    [
        (
            "vllm",
            ["toolCallParser", "reasoningParser", "chatTemplate"],
            ["--tool-call-parser", "hermes", "--reasoning-parser", "qwen3", "--enable-auto-tool-choice", KEPT],
        ),
        ("vllm", ["reasoningParser"], ["--reasoning-parser", "qwen3"]),
        (
            "sglang",
            ["toolCallParser", "reasoningParser"],
            ["--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"],
        ),
        ("embedded", ["toolCallParser", "chatTemplate"], ["--tool-call-parser", "hermes", KEPT]),
    ],
)
def test_arguments_for_chats_follow_the_spec(engine: str, fields: list[str], expected: list[str]) -> None:
    """Check the arguments, and that a template is escaped: the kubelet expands variables in arguments."""
    spec = {"engine": engine, **{name: CHATTING[name] for name in fields}}
    without, found = engine_of(adapter_job(), engine=engine)["args"], engine_of(adapter_job(), **spec)["args"]
    assert [argument for argument in found if argument not in without] == expected
    assert [argument for argument in found if argument in without] == without


@pytest.mark.parametrize(
    ("engine", "hook"),
    [
        ("embedded", None),
        ("vllm", {"exec": {"command": ["python3", "-m", "hone_gate", "drain", "10"]}}),
        ("sglang", {"sleep": {"seconds": 10}}),
        ("tgi", {"sleep": {"seconds": 10}}),
    ],
)
def test_a_terminating_engine_accepts_requests_until_all_nodes_know_of_it(engine: str, hook: Object | None) -> None:
    for job in (adapter_job(), finished_job(kind="merged")):
        pod = pod_of(job, engine=engine)
        assert pod["terminationGracePeriodSeconds"] == 600
        assert pod["containers"][0].get("lifecycle") == (hook and {"preStop": hook})


@pytest.mark.parametrize(
    ("engine", "probe"),
    [
        ("vllm", {"exec": {"command": ["python3", "-m", "hone_gate", "ask", "8000", "org/base"]}}),
        ("sglang", {"exec": {"command": ["python3", "-c", HEALTH_SCRIPT]}}),
        ("tgi", {"httpGet": {"path": "/health", "port": "http"}}),
        ("embedded", {"httpGet": {"path": "/health", "port": "http"}}),
    ],
)
def test_an_engine_has_started_when_its_model_has_answered(engine: str, probe: Object) -> None:
    container = engine_of(adapter_job(), engine=engine)
    startup = container["startupProbe"]
    assert startup.items() >= probe.items()
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3600
    assert container["readinessProbe"]["httpGet"] == container["livenessProbe"]["httpGet"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"


KEY = {"name": "keys", "key": "chat"}


@pytest.mark.parametrize(("engine", "key"), [("sglang", None), ("sglang", KEY), ("tgi", KEY)])
def test_engines_that_do_not_guard_all_routes_are_reachable_only_through_a_sidecar(
    engine: str, key: Object | None
) -> None:
    env = [{"name": "API_KEY", "value": "mine"}]
    spec = {"engine": engine, "pod": {"env": env}} | ({"apiKeySecret": key} if key else {})
    pod = pod_of(adapter_job(), **spec)
    [guard], [container] = pod["initContainers"][1:], pod["containers"]
    assert (guard["command"], guard["restartPolicy"]) == (["python3", "-m", "hone_server.key_guard"], "Always")
    assert after(container["args"], "--host" if engine == "sglang" else "--hostname") == "127.0.0.1"
    assert after(container["args"], "--port") == "8001"
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert not [argument for argument in container["args"] if "key" in argument]
    paths = ["/etc/hone/api-key"] if key else []
    assert [mount["mountPath"] for mount in guard["volumeMounts"]] == paths
    assert "/etc/hone/api-key" not in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert ("API_KEY" in variables(container)) == (engine == "sglang")
    arguments = ["--api-key-file", "/etc/hone/api-key/key"] if key else []
    routes = [part for route in SglangEngine.client_routes for part in ("--route", route)] if engine == "sglang" else []
    assert guard["args"] == [*arguments, *routes]


def test_tgi_without_a_key_has_no_sidecar() -> None:
    pod = pod_of(adapter_job(), engine="tgi")
    assert [one["name"] for one in pod["initContainers"]] == ["place"]
    assert after(pod["containers"][0]["args"], "--port") == "8000"


@pytest.mark.parametrize("model", [{"name": "org/base"}, {"fineTuneJob": {"name": "faq"}}])
def test_the_middleware_of_vllm_checks_the_key_for_every_kind_of_model(model: Object) -> None:
    env = [{"name": "VLLM_API_KEY", "value": "mine"}]
    pod = pod_of(adapter_job(), engine="vllm", model=model, apiKeySecret=KEY, pod={"env": env})
    [container] = pod["containers"]
    assert after(container["args"], "--middleware") == "hone_gate.Gate"
    expected = {"PYTHONPATH": "/served", "HONE_API_KEY_FILE": "/etc/hone/api-key/key"}
    assert expected.items() <= variables(container).items()
    assert "VLLM_API_KEY" not in variables(container)
    assert {"/served", "/etc/hone/api-key"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["lifecycle"]["preStop"]["exec"]["command"][2] == "hone_gate"
    if model == {"name": "org/base"}:
        assert [one["args"] for one in pod["initContainers"] if one["name"] == "place"] == [["--into", "/served"]]


def test_vllm_checks_its_artifacts_with_the_engines_own_arguments() -> None:
    pod = pod_of(adapter_job(), engine="vllm", resources={"gpus": 2}, pod={"image": "mine"})
    check, [container] = pod["initContainers"][-1], pod["containers"]
    assert [one["name"] for one in pod["initContainers"]] == ["place", "adapters", "check"]
    assert check["command"] == ["python3", "-m", "hone_vllm"]
    assert "restartPolicy" not in check
    for field in ("image", "args", "env", "resources", "volumeMounts", "securityContext"):
        assert check[field] == container[field]
    for engine in ("sglang", "tgi", "embedded"):
        pod = pod_of(adapter_job(), engine=engine)
        assert "check" not in [one["name"] for one in pod["initContainers"]]


@pytest.mark.parametrize("name", ["check", "guard"])
def test_the_status_reports_a_refusal_of_the_engine_itself(name: str) -> None:
    sentence = "vLLM 1.2 adapts only linear layers. Set spec.engine: embedded"
    words = f"hone-{name}: AdapterMismatch: {sentence}"
    ended = {"exitCode": 1, "message": f"INFO something\n{words}\n"}
    failed = pod("p", container="engine")
    failed["status"]["initContainerStatuses"] = [{"name": name, "restartCount": 0, "state": {"terminated": ended}}]
    observed = observed_service(service_object(engine="vllm"), adapter_job(), pods=[failed])
    status = plan_inferenceservice(observed, NOW).status
    assert conditions(status)["Progressing"][1] == "AdapterMismatch"
    assert message(status, "Progressing").startswith(sentence)


def test_vllm_with_only_a_hub_model_has_no_helper_container() -> None:
    pod = pod_of(engine="vllm", model={"name": "org/base"})
    [container] = pod["containers"]
    assert "initContainers" not in pod
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}
    assert "--middleware" not in container["args"]
    assert "PYTHONPATH" not in variables(container)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi"])
@pytest.mark.parametrize("kind", ["merged", "model"])
def test_a_merged_or_full_model_is_served_by_its_link(engine: str, kind: str) -> None:
    pod = pod_of(finished_job(kind=kind), engine=engine)
    arguments = pod["containers"][0]["args"]
    assert f"/served/model-{MARK}" in arguments
    assert not [argument for argument in arguments if "lora" in argument]
    first = pod["initContainers"][0]["args"]
    assert first == ["--into", "/served", "--model", "/claims/faq/team/faq", "--expect-model", DIGEST]


def test_artifacts_on_claims_are_checked_and_linked_before_the_engine_starts() -> None:
    adapters = [{"name": "legal", "claim": {"name": "c", "path": "p"}}]
    pod = pod_of(adapter_job(), engine="sglang", adapters=adapters)
    [first, _], [container] = pod["initContainers"], pod["containers"]
    assert (first["image"], first["command"]) == (
        IMAGE,
        ["python3", "-m", "hone_server.adapter_sidecar.link_artifacts"],
    )
    assert first["args"] == [
        *("--into", "/served", "--model", SNAPSHOT, "--base", "org/base", "--base-revision", COMMIT),
        *("--adapter", "faq=/claims/faq/team/faq", "--expect", f"faq={DIGEST}", "--adapter", "legal=/claims/c/p"),
        *("--max-rank", "64"),
    ]
    writable = {m["mountPath"] for m in first["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/served"}
    assert {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")} == {"/tmp", "/dev/shm"}
    assert first["securityContext"]["readOnlyRootFilesystem"]
    assert first["resources"]["requests"].keys() == {"cpu", "memory"}


def test_a_hub_model_needs_no_check_and_is_downloaded_at_its_revision() -> None:
    pod = pod_of(engine="vllm", model={"name": "org/other", "revision": "v1"})
    assert "initContainers" not in pod
    assert pod["containers"][0]["args"][:3] == ["org/other", "--served-model-name", "org/other"]
    assert after(pod["containers"][0]["args"], "--revision") == "v1"
    assert "HF_HUB_OFFLINE" not in variables(pod["containers"][0])
    tgi = engine_of(engine="tgi", model={"name": "org/other"})
    assert variables(tgi)["HUGGINGFACE_HUB_CACHE"] == "/cache/hub"


def test_the_base_comes_from_a_shared_cache_or_a_claim() -> None:
    cached = pod_of(adapter_job(cache={"claim": {"name": "hub-cache"}}), engine="vllm")["initContainers"][0]["args"]
    assert after(cached, "--model") == f"/claims/hub-cache/hub/models--org--base/snapshots/{COMMIT}"
    on_claim = finished_job(model={"claim": {"name": "models", "path": "tiny"}})
    first = pod_of(on_claim, engine="vllm")["initContainers"][0]["args"]
    assert after(first, "--model") == "/claims/models/tiny"


def test_environment_and_volumes_on_gpus() -> None:
    pod = pod_of(adapter_job(), resources={"gpus": 2, "sharedMemory": "16Gi"})
    found = variables(pod["containers"][0])
    expected = {
        "HIP_FORCE_DEV_KERNARG": "1",
        "SAFETENSORS_FAST_GPU": "1",
        "TORCH_BLAS_PREFER_HIPBLASLT": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HOME": "/tmp",
        "USER": "hone",
    }
    assert expected.items() <= found.items()
    assert pod["enableServiceLinks"] is False
    [shm] = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


@pytest.mark.parametrize(("rank", "accepted"), [(1, "64"), (64, "64"), (65, "128"), (257, "320"), (512, "512")])
def test_vllm_takes_only_some_ranks_and_most_adapters_need_no_other(rank: int, accepted: str) -> None:
    assert after(engine_of(adapter_job(lora={"r": rank}), engine="vllm")["args"], "--max-lora-rank") == accepted


@pytest.mark.parametrize("given", [["--max-lora-rank=128"], ["--max-lora-rank", "128"]])
def test_adapters_are_checked_against_the_rank_in_extra_args(given: list[str]) -> None:
    pod = pod_of(adapter_job(), engine="vllm", extraArgs=given)
    assert after(pod["initContainers"][1]["args"], "--max-rank") == "128"


def test_more_adapters_than_a_batch_takes_wait_in_the_hosts_memory() -> None:
    for number, at_once in [(0, "4"), (3, "4"), (4, "8"), (20, "8")]:
        adapters = [{"name": f"a{i}", "claim": {"name": "c", "path": f"a{i}"}} for i in range(number)]
        arguments = engine_of(adapter_job(), engine="vllm", adapters=adapters)["args"]
        assert (after(arguments, "--max-loras"), after(arguments, "--max-cpu-loras")) == (at_once, "32")


def test_a_sidecar_loads_adapters_into_vllm_and_its_admin_routes_are_gated() -> None:
    adapters = [{"name": "legal", "claim": {"name": "c", "path": "p"}}]
    pod = pod_of(adapter_job(), engine="vllm", adapters=adapters, apiKeySecret={"name": "keys", "key": "chat"})
    [place, sidecar, _], [container] = pod["initContainers"], pod["containers"]
    assert place["args"] == ["--into", "/served", "--model", SNAPSHOT]
    assert (sidecar["restartPolicy"], sidecar["command"]) == (
        "Always",
        ["python3", "-m", "hone_server.adapter_sidecar.main"],
    )
    assert sidecar["args"] == ["--max-rank", "64", "--api-key-file", "/etc/hone/api-key/key"]
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in sidecar["volumeMounts"]}
    read_only = ["/claims/faq", "/claims/c", "/etc/hone/adapters", "/etc/hone/api-key"]
    assert mounts == dict.fromkeys(read_only, True) | {"/served": False}
    assert not [m for m in sidecar["volumeMounts"] if "subPath" in m]
    assert {m["mountPath"]: m.get("readOnly", False) for m in container["volumeMounts"]}["/served"] is True
    [served] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "served"]
    assert served["medium"] == "Memory"
    assert after(container["args"], "--middleware") == "hone_gate.Gate"
    assert {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "PYTHONPATH": "/served",
        "HONE_ADMIN_TOKEN_FILE": "/served/admin-token",
    }.items() <= variables(container).items()
    mine = engine_of(adapter_job(), engine="vllm", pod={"env": [{"name": "PYTHONPATH", "value": "/mine"}]})
    assert variables(mine)["PYTHONPATH"] == "/mine:/served"
    without = pod_of(finished_job(kind="merged"), engine="vllm")
    assert [one["name"] for one in without["initContainers"]] == ["place", "check"]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in variables(without["containers"][0])


def test_the_embedded_engine_takes_any_kind_of_adapter_from_its_sidecar() -> None:
    pod = pod_of(adapter_job(lora={"useDora": True}), apiKeySecret={"name": "keys", "key": "chat"})
    [sidecar] = pod["initContainers"]
    assert sidecar["args"] == ["--api-key-file", "/etc/hone/api-key/key"]
    names = [volume["name"] for volume in pod["volumes"]]
    assert len(names) == len(set(names))
    mounts = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert {"/served", "/etc/hone/api-key", "/claims/faq"} < mounts
    assert "initContainers" not in pod_of(finished_job(kind="merged"))


def test_a_chat_template_of_the_job_goes_with_its_adapter() -> None:
    job = adapter_job(dataset={"name": "org/data", "chatTemplate": "{{ messages }}"})
    assert after(engine_of(job, engine="vllm")["args"], "--tokenizer") == f"/served/adapters/faq-{MARK}"


@pytest.mark.parametrize("engine", ["embedded", "vllm", "sglang", "tgi"])
def test_the_key_is_read_from_a_file(engine: str) -> None:
    pod = pod_of(adapter_job(), engine=engine, apiKeySecret=KEY)
    if engine == "embedded":
        assert after(pod["containers"][0]["args"], "--api-key-file") == "/etc/hone/api-key/key"
    [volume] = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert volume == {"secretName": "keys", "items": [{"key": "chat", "path": "key"}], "defaultMode": 0o440}


def test_remote_code_only_where_the_job_allowed_it() -> None:
    trusted = engine_of(adapter_job(model={"name": "org/base", "trustRemoteCode": True}), engine="vllm")
    assert "--trust-remote-code" in trusted["args"]
    assert variables(trusted)["HF_MODULES_CACHE"] == "/tmp/modules"
    assert "--trust-remote-code" not in engine_of(adapter_job(), engine="vllm")["args"]


def refusal(*jobs: Object, gpu: tuple[str, int] | None = None, **spec: Any) -> tuple[str, str]:
    found = plan_inferenceservice(observed_service(service_object(**spec), *jobs, gpu=gpu), NOW)
    assert DEPLOYMENTS not in [action.resource for action in found.actions]
    return conditions(found.status)["ArtifactsResolved"][1], message(found.status, "ArtifactsResolved")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi"])
@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"useDora": True}, "lora.useDora true"),
        ({"bias": "all"}, "lora.bias all"),
        ({"r": 1024}, "lora.r 1024 (the largest is 512)"),
    ],
)
def test_adapters_that_an_engine_refuses(engine: str, lora: Object, words: str) -> None:
    reason, said = refusal(adapter_job(lora=lora), engine=engine)
    assert reason == "AdapterMismatch"
    assert f"Adapter faq was trained with {words}, which {engine} can't load" in said
    assert engine_of(adapter_job(lora=lora))["command"] == ["hone-server"]


@pytest.mark.parametrize("model", [{"fineTuneJob": {"name": "faq"}}, {"name": "org/base", "revision": COMMIT}])
def test_an_adapter_of_another_commit_is_refused(model: Object) -> None:
    adapters = [{"name": "support", "fineTuneJob": {"name": "other"}}]
    jobs = adapter_job(), adapter_job("other", commit=OTHER)
    reason, said = refusal(*jobs, model=model, adapters=adapters)
    assert reason == "AdapterMismatch"
    assert f"trained on org/base at {OTHER}, and {COMMIT} is served" in said


def test_weights_that_do_not_fit_the_pods_memory_are_refused() -> None:
    job = adapter_job(parameters=7_000_000_000)
    reason, said = refusal(job, resources={"gpus": 0, "memory": "8Gi"})
    assert reason == "ModelTooLarge"
    assert "alone take 13.0 GiB (7000000000 parameters), and spec.resources.memory leaves 8.0 GiB for them" in said
    for resources in ({"gpus": 0, "memory": "16Gi"}, {"gpus": 0}, {"gpus": 1, "memory": "8Gi"}):
        assert plan_inferenceservice(observed_service(service_object(resources=resources), job), NOW).actions


def test_weights_that_no_gpu_can_hold_are_refused() -> None:
    job = adapter_job(parameters=70_000_000_000)
    reason, said = refusal(job, resources={"gpus": 1}, gpu=("MI210 of node n1", 64 << 30))
    assert reason == "ModelTooLarge"
    assert "130.4 GiB (70000000000 parameters), and 1 of MI210 of node n1 have 64.0 GiB" in said
    assert engine_of(job, resources={"gpus": 4}, gpu=("MI210 of node n1", 64 << 30))["command"] == ["vllm", "serve"]


ONE_GPU = {"resources": {"gpus": 1}}


def job_on(base: Object, *, parameters: int | None = None, **spec: Any) -> Object:
    """Return an adapter's job, with its trainer's report about the base model."""
    job = adapter_job(parameters=parameters, **spec)
    job["status"]["artifact"]["baseConfig"] = base
    return job


@pytest.mark.parametrize("engine", ["embedded", "vllm", "sglang", "tgi"])
def test_quantization_and_embeddings_are_left_to_the_version_of_the_engine_that_will_run(engine: str) -> None:
    lora = {"targetModules": ["q_proj", "model.embed_tokens"]}
    for kind in ("gptq", "bitsandbytes", "awq", "of-a-later-version"):
        base = {"quantization": kind, "architecture": "Qwen2ForCausalLM", "embeddingModules": ["embed_tokens"]}
        assert pod_of(job_on(base, lora=lora), engine=engine)


LLAMA_8B = {"cacheBytesPerToken": 131_072}
PARAMETERS_8B = 8_000_000_000
GPU = ("MI210 of node n1", 18 << 30)


def test_a_context_whose_cache_does_not_fit_next_to_the_weights_is_refused() -> None:
    job = job_on(LLAMA_8B, parameters=PARAMETERS_8B)
    reason, said = refusal(job, maxModelLen=32_768, gpu=GPU, **ONE_GPU)
    assert reason == "ModelTooLarge"
    assert "alone take 14.9 GiB (8000000000 parameters), and 1 of MI210 of node n1 have 18.0 GiB; " in said
    assert "leaves 3.1 GiB, and spec.maxModelLen 32768 needs 4.0 GiB. Lower spec.maxModelLen. Raise spec.res" in said
    for spec in (
        {"maxModelLen": 16_384},
        {},
        {"maxModelLen": 32_768, "extraArgs": ["--kv-cache-dtype=fp8"]},
        {"maxModelLen": 32_768, "extraArgs": ["--gpu-memory-utilization", "0.97"]},
    ):
        assert pod_of(job, gpu=GPU, **ONE_GPU, **spec)
    reason, _ = refusal(job, maxModelLen=32_768, gpu=GPU, extraArgs=["--seed=1"], **ONE_GPU)
    assert reason == "ModelTooLarge"


def test_the_embedded_engine_gives_its_cache_a_quarter_of_what_the_weights_leave() -> None:
    job = job_on(LLAMA_8B, parameters=PARAMETERS_8B)
    reason, said = refusal(job, maxModelLen=8192, resources={"gpus": 0, "memory": "18Gi"})
    assert reason == "ModelTooLarge"
    assert "that leaves 793 MiB, and spec.maxModelLen 8192 needs 1.0 GiB" in said
    assert pod_of(job, maxModelLen=8192, resources={"gpus": 0, "memory": "20Gi"})


def test_the_weights_of_a_quantized_base_are_not_counted_as_16_bits() -> None:
    job = job_on({"quantization": "gptq"}, parameters=70_000_000_000)
    assert pod_of(job, gpu=GPU, **ONE_GPU)


def test_an_engine_without_an_image_is_refused_with_the_field_to_set() -> None:
    observed = observed_service(service_object(engine="vllm"), adapter_job())
    observed.images.engines.pop("vllm")
    try:
        found = plan_inferenceservice(observed, NOW)
    finally:
        observed.images.engines["vllm"] = "vllm:test"
    assert "spec.pod.image, or the chart's value runtime.vllmImage" in message(found.status, "ArtifactsResolved")
