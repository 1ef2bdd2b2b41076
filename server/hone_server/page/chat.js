"use strict";

const byId = (id) => document.getElementById(id);
let columns = []; // each {model, history, section}
let leaving = null; // aborts the answers that are under way

function make(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function tell(problem) {
  byId("problem").textContent = problem;
  byId("problem").hidden = !problem;
}

async function ask(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (byId("key").value) headers.Authorization = `Bearer ${byId("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? `the server answered ${answer.status}`);
}

async function listModels() {
  try {
    const { data } = await (await ask("v1/models")).json();
    const options = () => data.map((model) => new Option(`${model.id} (${model.kind})`, model.id));
    byId("model").replaceChildren(...options());
    byId("beside").replaceChildren(new Option("nothing", ""), ...options());
    byId("model").value = (data.find((model) => model.kind === "adapter") ?? data[0]).id;
    tell("");
  } catch (error) {
    tell(error.message);
  }
  begin();
}

function begin() {
  leaving?.abort();
  const models = [byId("model").value, byId("beside").value].filter((model) => model);
  columns = models.map((model) => {
    const section = document.createElement("section");
    section.append(make("h2", "", model));
    return { model, history: [], section };
  });
  byId("columns").replaceChildren(...columns.map((column) => column.section));
}

function show(column, role, text) {
  const message = make("div", `message ${role}`, text);
  column.section.append(message);
  column.section.scrollTop = column.section.scrollHeight;
  return message;
}

async function* pieces(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection was lost");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk.choices[0]?.delta.content ?? "";
    }
  }
}

/** A failed answer leaves the history as it was, so that the next question does not build on half a sentence. */
async function answerIn(column, question, signal) {
  show(column, "user", question);
  const message = show(column, "assistant waiting", "");
  const messages = [...column.history, { role: "user", content: question }];
  try {
    const body = JSON.stringify({ model: column.model, messages, stream: true });
    const answer = await ask("v1/chat/completions", { method: "POST", body, signal });
    for await (const text of pieces(answer)) {
      message.textContent += text;
      column.section.scrollTop = column.section.scrollHeight;
    }
    column.history = [...messages, { role: "assistant", content: message.textContent }];
  } finally {
    message.classList.remove("waiting");
  }
}

async function send(event) {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || leaving) return;
  byId("question").value = "";
  tell("");
  leaving = new AbortController();
  busy(true);
  const signal = leaving.signal;
  const results = await Promise.allSettled(columns.map((column) => answerIn(column, question, signal)));
  const failed = results.find((result) => result.status === "rejected");
  if (failed && !signal.aborted) tell(failed.reason.message);
  leaving = null;
  busy(false);
}

function busy(now) {
  byId("send").hidden = now;
  byId("stop").hidden = !now;
}

byId("form").addEventListener("submit", send);
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
byId("stop").addEventListener("click", () => leaving?.abort());
byId("clear").addEventListener("click", begin);
byId("model").addEventListener("change", begin);
byId("beside").addEventListener("change", begin);
byId("key").addEventListener("change", listModels);
listModels();
