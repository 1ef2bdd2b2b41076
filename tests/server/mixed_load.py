"""Many different clients at once, each of which knows the right answers: those of plain transformers."""

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import openai.resources  # otherwise threads import it concurrently at first use, and deadlock
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH = 16  # tokens of an answer
# A question is used if the best logit of each token is this far above the second one, so that rounding can't matter.
CLEAR = 1e-3
WORDS = "the quick brown fox jumps over a lazy dog hello world how are you today we tune large models".split()
SENT_SLOWLY = 40  # bytes at once


@dataclass(frozen=True)
class Question:
    """A question for a model, and the greedy answer of plain transformers, with the `logprobs` of its tokens."""

    model: str
    text: str
    is_chat: bool
    answer: str
    finish_reason: str
    logprobs: list[float]

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def body(self, **more: Any) -> dict[str, Any]:
        prompt = {"messages": [{"role": "user", "content": self.text}]} if self.is_chat else {"prompt": self.text}
        return {"model": self.model, "max_tokens": LENGTH, "temperature": 0, **prompt, **more}


def prefer_ascii(base: Path) -> None:
    """Change a model so that it greedily chooses only tokens of ASCII letters.

    At an answer's end, vLLM leaves out an incomplete character, where transformers and Hone have a `\ufffd`.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    others = [token for token in range(len(tokenizer)) if not tokenizer.decode([token]).isascii()]
    with torch.no_grad():
        model.lm_head.weight[others] = 0  # some other token's logit is above 0
    model.save_pretrained(base)


def make_questions(base: Path, adapters: dict[str, Path], each: int, draw: random.Random) -> list[Question]:
    """Return this many questions, answered by plain transformers for the base and by PEFT for each adapter on it."""
    questions = []
    for name, folder in {base.name: None, **adapters}.items():
        questions += [same for (same,) in make_same_questions(base, name, [folder], each, draw)]
    return questions


def make_same_questions(
    base: Path, name: str, folders: list[Path | None], each: int, draw: random.Random
) -> list[tuple[Question, ...]]:
    """Return the same questions for several adapters, all under one name. None is the base."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    models = [_load_plainly(base, folder) for folder in folders]
    clear: list[tuple[Question, ...]] = []
    while len(clear) < each:
        text, is_chat = " ".join(draw.choices(WORDS, k=draw.randint(1, 30))), len(clear) % 2 == 0
        same = [_answer_plainly(model, tokenizer, name, text, is_chat=is_chat) for model in models]
        if all(same):
            clear.append(tuple(question for question in same if question is not None))
    return clear


def _load_plainly(base: Path, folder: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return model if folder is None else PeftModel.from_pretrained(model, folder).eval()


def _answer_plainly(model: Any, tokenizer: Any, name: str, text: str, *, is_chat: bool) -> Question | None:
    """Return the question, or None when rounding could change its answer."""
    prompt = text
    if is_chat:
        messages = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not is_chat).input_ids
    with torch.no_grad():
        generated = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LENGTH,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack(generated.logits)[:, 0].float()
    best = logits.topk(2).values
    if float((best[:, 0] - best[:, 1]).min()) < CLEAR:
        return None
    tokens = generated.sequences[0, ids.shape[1] :]
    finish_reason = "stop" if int(tokens[-1]) == tokenizer.eos_token_id else "length"
    logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
    answer = tokenizer.decode(tokens, skip_special_tokens=True)
    return Question(name, text, is_chat, answer, finish_reason, logprobs)


@dataclass
class Crowd:
    """What the clients of one server share.

    `several`: fields of a request for several greedy answers. `retries` of OpenAI's client; a cut stream is asked for
    again as well. `is_ready`: unset while no connection reaches the server.
    """

    url: str
    questions: list[Question]
    guests: list[tuple[Question, ...]]
    several: dict[str, Any] = field(default_factory=dict)
    retries: int = 0
    is_ready: threading.Event | None = None
    request_counts: Counter[str] = field(default_factory=Counter)
    _sampled: dict[tuple[str, str, int], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> openai.OpenAI:
        own = openai.DefaultHttpxClient(transport=ServiceTransport(self.is_ready)) if self.is_ready else None
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=self.retries, timeout=300, http_client=own
        )

    def note(self, kind: str) -> None:
        with self._lock:
            self.request_counts[kind] += 1

    def check_sample(self, question: Question, seed: int, answer: str) -> None:
        """Check that all answers to a question with a seed are the same as the first one."""
        with self._lock:
            first = self._sampled.setdefault((question.model, question.text, seed), answer)
        assert answer == first, (question, seed, answer, first)

    def address(self) -> tuple[str, int]:
        split = urlsplit(self.url)
        assert split.hostname is not None
        assert split.port is not None
        return split.hostname, split.port


class ServiceTransport(httpx.HTTPTransport):
    """Reaches a server only while its pod is ready, like a Kubernetes Service."""

    def __init__(self, is_ready: threading.Event) -> None:
        super().__init__()
        self._is_ready = is_ready

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self._is_ready.is_set():
            raise httpx.ConnectError("the Service has no ready pod", request=request)
        return super().handle_request(request)


@dataclass(frozen=True)
class Turn:
    """One request of one client."""

    crowd: Crowd
    client: openai.OpenAI
    question: Question
    draw: random.Random

    def create(self, **more: Any) -> Any:
        resource = self.client.chat.completions if self.question.is_chat else self.client.completions
        return resource.create(**self.question.body(**more))

    def check(self, text: str, finish_reason: str | None) -> None:
        assert (text, finish_reason) == (self.question.answer, self.question.finish_reason), self.question


def read_choice(choice: Any) -> str:
    """Return the text of a choice, or of a part of one in a stream."""
    message = getattr(choice, "delta", None) or getattr(choice, "message", None)
    return (choice.text if message is None else message.content) or ""


def ask_whole(turn: Turn) -> None:
    (choice,) = turn.create().choices
    turn.check(read_choice(choice), choice.finish_reason)


def ask_stream(turn: Turn, before_each: Callable[[], object] = lambda: None) -> None:
    texts: list[str] = []
    reason = None
    with turn.create(stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            before_each()
            for choice in chunk.choices:
                texts.append(read_choice(choice))
                reason = choice.finish_reason or reason
            usage = chunk.usage
    turn.check("".join(texts), reason)
    assert usage.completion_tokens == len(turn.question.logprobs)


def ask_stream_slowly(turn: Turn) -> None:
    pause = threading.Event()
    ask_stream(turn, lambda: pause.wait(0.02))


def ask_several(turn: Turn) -> None:
    answer = turn.create(n=3, extra_body=turn.crowd.several)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]
    for choice in answer.choices:
        turn.check(read_choice(choice), choice.finish_reason)


def ask_until_stop(turn: Turn) -> None:
    answer = turn.question.answer
    letters = [letter for letter in answer[len(answer) // 2 :] if letter.isascii() and letter.isprintable()]
    stop = turn.draw.choice(letters or ["~"])
    (choice,) = turn.create(stop=[stop, "never said"]).choices
    if stop in answer:
        assert (read_choice(choice), choice.finish_reason) == (answer[: answer.index(stop)], "stop"), turn.question
    else:
        turn.check(read_choice(choice), choice.finish_reason)


def ask_logprobs(turn: Turn) -> None:
    more = {"logprobs": True, "top_logprobs": 2} if turn.question.is_chat else {"logprobs": 2}
    (choice,) = turn.create(**more).choices
    turn.check(read_choice(choice), choice.finish_reason)
    content = choice.logprobs.content if turn.question.is_chat else None
    logprobs = choice.logprobs.token_logprobs if content is None else [token.logprob for token in content]
    expected = turn.question.logprobs[: len(logprobs)]
    assert len(logprobs) >= len(turn.question.logprobs) - 1  # the end token's may be left out
    assert all(abs(one - other) < 1e-2 for one, other in zip(logprobs, expected, strict=True)), (logprobs, expected)


def ask_with_seed(turn: Turn) -> None:
    seed = turn.draw.randrange(3)
    (choice,) = turn.create(temperature=1.0, seed=seed).choices
    turn.crowd.check_sample(turn.question, seed, read_choice(choice))


def leave_stream(turn: Turn) -> None:
    with turn.create(stream=True, max_tokens=400, extra_body={"ignore_eos": True}) as stream:
        for _ in zip(range(turn.draw.randrange(1, 6)), stream, strict=False):
            pass


def leave_at_once(turn: Turn) -> None:
    """Send a request for a long answer and disconnect."""
    with socket.create_connection(turn.crowd.address(), timeout=300) as connection:
        several = {"n": turn.draw.randint(2, 4), **turn.crowd.several} if turn.draw.random() < 0.75 else {}
        connection.sendall(_written(turn.question, max_tokens=400, ignore_eos=True, **several))
        threading.Event().wait(turn.draw.uniform(0, 0.2))


def send_slowly(turn: Turn) -> None:
    """Send the request in small parts, and still get the complete answer."""
    written = _written(turn.question)
    with socket.create_connection(turn.crowd.address(), timeout=300) as connection:
        for start in range(0, len(written), SENT_SLOWLY):
            connection.sendall(written[start : start + SENT_SLOWLY])
            threading.Event().wait(0.01)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), received
    choice = json.loads(body)["choices"][0]
    text = choice["message"]["content"] if turn.question.is_chat else choice["text"]
    turn.check(text or "", choice["finish_reason"])


def break_off(turn: Turn) -> None:
    """Send an incomplete or invalid request."""
    written = _written(turn.question)
    part = turn.draw.choice([written[: turn.draw.randrange(1, len(written))], b"\x16\x03\x01 no HTTP\r\n\r\n", b""])
    with socket.create_connection(turn.crowd.address(), timeout=300) as connection:
        connection.sendall(part)


def send_nonsense(turn: Turn) -> None:
    body, status = turn.draw.choice(
        [
            (b'{"model": ', 400),
            (json.dumps(turn.question.body(model="nobody")).encode(), 404),
            (json.dumps(turn.question.body(max_tokens=-1)).encode(), 400),
            (json.dumps(turn.question.body(temperature="hot")).encode(), 400),
            (json.dumps(turn.question.body(stream=True, stop=[1])).encode(), 400),
        ]
    )
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(turn.crowd.url + turn.question.path, content=body, headers=headers, timeout=300)
    assert answer.status_code == status, (body, answer.text)
    assert answer.json()["error"]["message"]


def ask_guest(turn: Turn) -> None:
    """Ask an adapter that is exchanged at run time: one of its versions answers, or it does not exist."""
    same = turn.draw.choice(turn.crowd.guests)
    try:
        (choice,) = Turn(turn.crowd, turn.client, same[0], turn.draw).create().choices
    except openai.NotFoundError:
        return
    assert read_choice(choice) in [question.answer for question in same], same


def _written(question: Question, **more: Any) -> bytes:
    body = json.dumps(question.body(**more)).encode()
    head = f"POST {question.path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


Kind = Callable[[Turn], None]
# OpenAI's client repeats these requests automatically when the connection breaks.
RETRIED: list[Kind] = [ask_whole, ask_several, ask_until_stop, ask_logprobs, ask_with_seed]
STREAMS: list[Kind] = [ask_stream, ask_stream_slowly, leave_stream]
KINDS: list[Kind] = [*RETRIED, *STREAMS, leave_at_once, send_slowly, break_off, send_nonsense, ask_guest]


def deal(kinds: list[Kind], requests: int, draw: random.Random) -> list[Kind]:
    """Return this many requests in random order, the same number of each kind."""
    dealt = [kinds[number % len(kinds)] for number in range(requests)]
    draw.shuffle(dealt)
    return dealt


def let_all_ask(crowd: Crowd, turns: Iterable[Kind], clients: int, draw: random.Random) -> None:
    """Let this many concurrent clients take the turns. Raises the first failure of a client."""
    lock, failed = threading.Lock(), threading.Event()
    rest: Iterator[Kind] = iter(turns)

    def be_client(seed: int) -> None:
        own = random.Random(seed)
        with crowd.client() as client:
            while not failed.is_set():
                with lock:
                    kind = next(rest, None)
                if kind is None:
                    return
                try:
                    take_turn(kind, Turn(crowd, client, own.choice(crowd.questions), own))
                except BaseException:
                    failed.set()
                    raise
                crowd.note(kind.__name__)

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(be_client, draw.randrange(2**32)) for _ in range(clients)]:
            future.result()


def take_turn(kind: Kind, turn: Turn) -> None:
    """Send the request; if the client may retry, a cut stream is requested again."""
    while True:
        try:
            return kind(turn)
        except (httpx.TransportError, openai.APIConnectionError):
            if not turn.crowd.retries or kind not in STREAMS:
                raise
            turn.crowd.note("cut streams")
