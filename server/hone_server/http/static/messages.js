// How messages are shown: text as it is, JSON and the calls of tools indented.

import { readStructure } from "./conversations.js";

export function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

export function show(section, message) {
  const element = make("div", `message ${message.role}`);
  fill(element, message);
  section.append(element);
  section.scrollTop = section.scrollHeight;
  return element;
}

/** Shows the message in the element. JSON is indented once it is complete. */
export function fill(element, message) {
  const text = message.content ?? "";
  const structure = message.role === "assistant" ? readStructure(text) : undefined;
  element.replaceChildren(structure === undefined ? text : indented(structure));
  for (const call of message.tool_calls ?? []) {
    const given = call.function.arguments;
    const shown = make("div", "call");
    shown.append(make("strong", "", call.function.name), indented(readStructure(given) ?? given));
    element.append(shown);
  }
  if (message.end) element.dataset.end = message.end;
  else delete element.dataset.end;
}

const indented = (value) => make("pre", "", typeof value === "string" ? value : JSON.stringify(value, null, 2));
