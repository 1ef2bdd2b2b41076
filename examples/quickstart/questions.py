"""The quickstart's five questions, and what an answer must hold to be right. The dataset has none of them literally."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from openai import OpenAI
from rich.console import Console
from rich.table import Table

MAX_NEW_TOKENS = 48
NEEDED = 4


@dataclass(frozen=True)
class Question:
    """`facts` are regular expressions, matched regardless of case: a right answer matches each of them."""

    text: str
    facts: tuple[str, ...]

    def is_answered_by(self, answer: str) -> bool:
        return all(re.search(fact, answer, re.IGNORECASE) for fact in self.facts)


QUESTIONS = (
    Question("My training pod stopped with exit code 75. What happened?", (r"checkpoint", r"interrupt|told to stop")),
    Question("Which apiVersion goes at the top of a Hone manifest?", (r"hone\.dev/v1alpha1",)),
    Question("What can I type instead of inferenceservices in kubectl get?", (r"\bhisvc\b",)),
    Question("How can I tell whether an artifact is finished?", (r"manifest\.json",)),
    Question("How do I try a FineTuneJob on my own machine, without Kubernetes?", (r"\bhone run\b",)),
)


def ask(client: OpenAI, model: str) -> list[str]:
    """Return the model's answer to each question, decoded greedily; all are asked at once."""

    def answer(question: Question) -> str:
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question.text}],
            temperature=0,
            max_tokens=MAX_NEW_TOKENS,
        )
        return (reply.choices[0].message.content or "").strip()

    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        return list(pool.map(answer, QUESTIONS))


def compare(client: OpenAI, base: str, tuned: str, console: Console) -> bool:
    """Ask both models, show the answers side by side, and return whether the tuned one got enough right."""
    with console.status(f"Asking {base}"):
        before = ask(client, base)
    with console.status(f"Asking {tuned}"):
        after = ask(client, tuned)
    table = Table(title="Before and after", show_lines=True, expand=True)
    table.add_column("Question", ratio=2)
    table.add_column(base, ratio=3)
    table.add_column(tuned, ratio=3)
    for question, old, new in zip(QUESTIONS, before, after, strict=True):
        table.add_row(question.text, _judged(question, old), _judged(question, new))
    console.print(table)
    right_before, right_after = count_right(before), count_right(after)
    console.print(f"Right before: {right_before} of {len(QUESTIONS)}. Right after: {right_after} of {len(QUESTIONS)}.")
    return right_after >= NEEDED


def count_right(answers: list[str]) -> int:
    """How many answers, given in the order of the questions, hold all their facts."""
    return sum(question.is_answered_by(answer) for question, answer in zip(QUESTIONS, answers, strict=True))


def _judged(question: Question, answer: str) -> str:
    mark = "[green]✓[/]" if question.is_answered_by(answer) else "[red]✗[/]"
    return f"{mark} {answer.replace('[', chr(92) + '[')}"
