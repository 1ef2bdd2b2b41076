// Conversations, kept in this browser's localStorage: one item each, so that two tabs don't overwrite each other's.
// A conversation is {id, updated, options, columns: [{model, messages}]}. A message is as the API has it; an assistant's
// may have `end` as well, which says why the answer is not complete, and is neither sent nor exported.

const PREFIX = "hone-chat/";

export function create(models, options) {
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
  return { id, updated: 0, options, columns: models.map((model) => ({ model, messages: [] })) };
}

/** Returns the stored conversations, the latest first. What is not readable as one is left out. */
export function list() {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
    return keys.map((key) => read(localStorage.getItem(key))).filter((one) => one).sort((a, b) => b.updated - a.updated);
  } catch {
    return []; // the browser keeps nothing for this page
  }
}

function read(text) {
  try {
    const found = JSON.parse(text);
    const isMessage = (one) => typeof one.role === "string" && (one.content === null || typeof one.content === "string");
    const isColumn = (one) => typeof one.model === "string" && one.messages.every(isMessage);
    return typeof found.id === "string" && found.columns.every(isColumn) ? found : null;
  } catch {
    return null;
  }
}

/** Throws an Error for the user when the browser has no room for it. */
export function save(conversation) {
  if (!conversation.columns.some((column) => column.messages.length)) return;
  conversation.updated = Date.now();
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
  } catch (error) {
    throw new Error(`the browser can't keep this conversation: ${error.message} Export it, or delete others.`);
  }
}

export function remove(conversation) {
  try {
    localStorage.removeItem(PREFIX + conversation.id);
  } catch {
    // the browser keeps nothing for this page
  }
}

export function title(conversation) {
  const first = conversation.columns.flatMap((column) => column.messages).find((message) => message.role === "user");
  return (first?.content ?? "").replace(/\s+/g, " ").slice(0, 60);
}

/** Returns the messages as the API takes them. */
export const toRequest = (messages) => messages.map(({ end, ...message }) => message);

/** Returns the value of a JSON object or list, or undefined. */
export function readStructure(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Returns one line for each column: a row of a dataset, as the trainer reads it. */
export function toJsonl(conversation) {
  const tools = readStructure(conversation.options)?.tools;
  const rows = conversation.columns.filter((column) => column.messages.length).map((column) => {
    const messages = toRequest(column.messages).map(toTraining);
    return tools?.length ? { messages, tools } : { messages };
  });
  return rows.map((row) => `${JSON.stringify(row)}\n`).join("");
}

// Chat templates want the arguments of a call as an object, where the API has JSON text.
function toTraining({ tool_calls: calls, ...message }) {
  if (!calls) return message;
  const asObject = (call) => ({ name: call.name, arguments: readStructure(call.arguments) ?? call.arguments });
  return { ...message, tool_calls: calls.map((call) => ({ ...call, function: asObject(call.function) })) };
}
