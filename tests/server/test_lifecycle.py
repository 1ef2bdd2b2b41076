"""Start, failure and end of the server's process."""

import shutil
import signal

import httpx
import pytest


def test_a_corrupt_file_keeps_the_server_from_starting(run_to_end, artifact, base_folder, tmp_path):
    tree = shutil.copytree(artifact, tmp_path / "tree")
    weights = tree / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, said = run_to_end(str(tree), "--claim", f"models={base_folder.parent}")
    assert code == 65
    assert said.startswith("hone-server: ArtifactCorrupt: ")
    assert "adapter_model.safetensors" in said
    assert "Traceback" not in said


def test_another_digest_than_the_expected_one_keeps_the_server_from_starting(run_to_end, artifact, base_folder):
    code, said = run_to_end(str(artifact), "--claim", f"models={base_folder.parent}", "--expect", "support=sha256:0123")
    assert code == 65
    assert "ArtifactCorrupt" in said
    assert "sha256:0123" in said


@pytest.mark.parametrize(("arguments", "code"), [(["/nowhere"], 66), (["model", "--adapter", "nameless"], 2)])
def test_bad_arguments_are_named(run_to_end, arguments, code):
    found, said = run_to_end(*arguments)
    assert found == code
    assert arguments[-1] in said
    assert "Traceback" not in said


def test_a_failure_while_loading_ends_the_process_with_its_reason(run_to_end, base_folder, tmp_path):
    broken = shutil.copytree(base_folder, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    code, said = run_to_end(str(broken))
    assert code == 66
    assert "ModelNotFound" in said


def test_a_context_that_does_not_fit_the_memory_is_refused(run_to_end, base_folder, tmp_path):
    import json

    vast = shutil.copytree(base_folder, tmp_path / "vast")
    config = json.loads((vast / "config.json").read_text())
    (vast / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**10}))
    code, said = run_to_end(str(vast), "--max-model-len", str(10**9))
    assert code == 69
    assert "--max-model-len" in said


def test_sigterm_finishes_what_runs_and_exits_zero(serve, base_folder, until):
    body = {"model": "tiny-llama", "prompt": "hello", "max_tokens": 600, "ignore_eos": True, "stream": True}
    with serve(str(base_folder)) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(server))
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.process.wait(timeout=20) == 0


def refuses(server):
    try:
        server.get("/health")
    except httpx.ConnectError:
        return True
    return False


def test_sigterm_while_starting_exits_zero(start_server, base_folder):
    process = start_server(str(base_folder))
    for line in process.stderr:
        if b"starting" in line:
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


def test_a_model_without_a_chat_template_says_so(serve, model_maker, tmp_path):
    folder = model_maker(tmp_path / "plain", chat_template=None)
    with serve(str(folder), "--name", "plain") as server:
        messages = [{"role": "user", "content": "x"}]
        answer = server.post("/v1/chat/completions", {"model": "plain", "messages": messages})
        assert answer.status_code == 400
        assert "chat template" in answer.json()["error"]["message"]
        completion = server.post("/v1/completions", {"model": "plain", "prompt": "x", "max_tokens": 1})
        assert completion.status_code == 200
