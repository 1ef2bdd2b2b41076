// The chat page. What is shown is what the conversation holds, and that is what is sent with the next question.

import { create, list, remove, save, title, toJsonl, toRequest } from "./conversations.js";
import { fill, make, show } from "./messages.js";
import { add, ask, choices, isEmpty } from "./streams.js";

const byId = (id) => document.getElementById(id);
const OWN_FIELDS = ["model", "messages", "stream", "n"]; // the page sets them, and shows one answer
const [STOPPED, INCOMPLETE] = ["stopped", "incomplete"]; // how an answer ended
let conversation = create([], "");
let sections = []; // of its columns
let leaving = null; // aborts the answers that are under way
let unanswered = null; // {question, columns}: those that refused it, while others answered

function tell(problem) {
  byId("problem").textContent = problem;
  byId("problem").hidden = !problem;
}

async function listModels() {
  try {
    const { data } = await (await ask("v1/models", byId("key").value)).json();
    const options = () => data.map((model) => new Option(`${model.id} (${model.kind})`, model.id));
    byId("model").replaceChildren(...options());
    byId("beside").replaceChildren(new Option("nothing", ""), ...options());
    byId("model").value = (data.find((model) => model.kind === "adapter") ?? data[0]).id;
    tell("");
  } catch (error) {
    tell(error.message);
    byId("settings").open = true;
  }
  if (conversation.columns.some((column) => column.messages.length)) return open(conversation);
  const models = [...byId("model").options].map((option) => option.value);
  const kept = list().find((one) => one.columns.every((column) => models.includes(column.model)));
  kept ? open(kept) : begin();
}

function begin() {
  const models = [byId("model").value, byId("beside").value].filter((model) => model);
  open(create(models, byId("options").value));
}

function restart() {
  tell("");
  begin();
}

function open(chosen) {
  leaving?.abort();
  unanswered = null;
  conversation = chosen;
  const [first, second] = conversation.columns;
  if (first) choose(byId("model"), first.model);
  choose(byId("beside"), second?.model ?? "");
  byId("options").value = conversation.options ?? "";
  sections = conversation.columns.map((column) => {
    const section = make("section", "");
    section.append(make("h2", "", column.model));
    return section;
  });
  byId("columns").replaceChildren(...sections);
  conversation.columns.forEach((column, place) => column.messages.forEach((message) => show(sections[place], message)));
  listConversations();
}

/** A conversation's model that this server does not have is shown all the same. */
function choose(field, model) {
  if (![...field.options].some((option) => option.value === model)) field.append(new Option(model, model));
  field.value = model;
}

function listConversations() {
  const kept = list();
  const options = kept.map((one) => new Option(title(one), one.id));
  byId("conversation").replaceChildren(new Option("New conversation", ""), ...options);
  const isKept = kept.some((one) => one.id === conversation.id);
  byId("conversation").value = isKept ? conversation.id : "";
  byId("delete").disabled = byId("export").disabled = !conversation.columns.some((column) => column.messages.length);
}

function keep(kept) {
  try {
    save(kept);
  } catch (error) {
    tell(error.message);
  }
  listConversations();
}

function readOptions() {
  const text = byId("options").value.trim();
  if (!text) return {};
  let options;
  try {
    options = JSON.parse(text);
  } catch (error) {
    throw new Error(`Request fields are not JSON: ${error.message}`);
  }
  if (options === null || typeof options !== "object" || Array.isArray(options)) {
    throw new Error('Request fields must be a JSON object, such as {"temperature": 0}');
  }
  const own = OWN_FIELDS.find((name) => name in options);
  if (own) throw new Error(`Request fields have ${own}, which the page sets: remove it`);
  return options;
}

/** Adds question and answer to the column's messages; a part of an answer, too. With no part of it, shows neither.
 *
 * Throws an Error with the reason, which has `isRefused` when there is no part of an answer.
 */
async function answerIn(column, section, question, options, signal) {
  const asked = { role: "user", content: question };
  const answered = { role: "assistant", content: "", end: INCOMPLETE }; // until it is complete, if the page is left
  const shown = [show(section, asked), show(section, answered)];
  shown[1].classList.add("waiting");
  const before = column.messages;
  try {
    const messages = toRequest([...before, asked]);
    const body = JSON.stringify({ ...options, model: column.model, messages, stream: true });
    const answer = await ask("v1/chat/completions", byId("key").value, { method: "POST", body, signal });
    for await (const choice of choices(answer)) {
      add(answered, choice);
      if (!isEmpty(answered)) column.messages = [...before, asked, answered];
      fill(shown[1], answered);
      section.scrollTop = section.scrollHeight;
    }
    if (answered.end === INCOMPLETE) delete answered.end;
    fill(shown[1], answered);
    column.messages = [...before, asked, answered];
  } catch (error) {
    error = signal.aborted ? new Error(STOPPED) : error;
    if (isEmpty(answered)) {
      shown.forEach((element) => element.remove());
      throw Object.assign(error, { isRefused: true });
    }
    answered.end = signal.aborted ? STOPPED : INCOMPLETE;
    fill(shown[1], answered);
    throw error;
  } finally {
    shown[1].classList.remove("waiting");
  }
}

async function send(event) {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || leaving) return;
  let options;
  try {
    if (!conversation.columns.length) throw new Error("There is no model to ask: enter the API key, or reload the page");
    options = readOptions();
  } catch (error) {
    tell(error.message);
    return;
  }
  byId("question").value = "";
  tell("");
  const current = conversation;
  current.options = byId("options").value;
  const asked = unanswered?.question === question ? unanswered.columns : current.columns;
  leaving = new AbortController();
  const { signal } = leaving;
  busy(true);
  const answers = asked.map((column) =>
    answerIn(column, sections[current.columns.indexOf(column)], question, options, signal));
  const results = await Promise.allSettled(answers);
  leaving = null;
  busy(false);
  const refused = asked.filter((_, place) => results[place].reason?.isRefused);
  if (refused.length) byId("question").value = [question, byId("question").value].filter((text) => text).join("\n");
  unanswered = refused.length && current === conversation ? { question, columns: refused } : null;
  const problems = results.map(({ reason }, place) => reason && `${asked[place].model}: ${reason.message}`);
  if (!signal.aborted) tell(problems.filter((problem) => problem).join("; "));
  keep(current);
}

function busy(now) {
  byId("send").hidden = now;
  byId("stop").hidden = !now;
}

function exportConversation() {
  const link = make("a", "");
  link.href = URL.createObjectURL(new Blob([toJsonl(conversation)], { type: "application/jsonl" }));
  link.download = `${conversation.columns.map((column) => column.model).join("-").replace(/[^\w.-]/g, "_")}.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function removeConversation() {
  const removed = conversation;
  removed.columns = []; // an answer that is under way does not bring it back
  remove(removed);
  restart();
}

byId("form").addEventListener("submit", send);
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
byId("stop").addEventListener("click", () => leaving?.abort());
byId("clear").addEventListener("click", restart);
byId("delete").addEventListener("click", removeConversation);
byId("export").addEventListener("click", exportConversation);
byId("model").addEventListener("change", restart);
byId("beside").addEventListener("change", restart);
byId("conversation").addEventListener("change", () => {
  tell("");
  const chosen = list().find((one) => one.id === byId("conversation").value);
  chosen ? open(chosen) : begin();
});
byId("key").addEventListener("change", listModels);
window.addEventListener("storage", listConversations);
window.addEventListener("pagehide", () => leaving && keep(conversation));
byId("settings").open = window.matchMedia("(min-width: 40rem)").matches;
listModels();
