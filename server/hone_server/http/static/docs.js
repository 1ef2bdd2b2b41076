"use strict";

// The OpenAPI document as tables: for each route what it takes, and what it answers.

function make(tag, ...children) {
  const element = document.createElement(tag);
  element.append(...children);
  return element;
}

const found = (api, schema) => schema.$ref ? schema.$ref.split("/").slice(1).reduce((at, key) => at[key], api) : schema;

function type(api, schema) {
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map((one) => type(api, one)).filter((one) => one !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(", ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.type === "array") return `list of ${type(api, schema.items ?? {})}`;
  return schema.type ?? "anything";
}

function limits(schema) {
  const signs = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", exclusiveMaximum: "<" };
  const all = [schema, ...(schema.anyOf ?? [])];
  return all.flatMap((one) => Object.keys(signs).filter((key) => key in one).map((key) => `${signs[key]} ${one[key]}`));
}

function row(api, name, schema, required) {
  const words = [type(api, schema), ...limits(schema), required ? "required" : "", schema.description ?? ""];
  return make("tr", make("th", name), make("td", words.filter((word) => word).join("; ")));
}

function table(api, schema) {
  const { properties = {}, required = [] } = found(api, schema);
  return make("table", ...Object.entries(properties).map(([name, one]) => row(api, name, one, required.includes(name))));
}

function route(api, path, method, operation) {
  const details = make("details", make("summary", `${method.toUpperCase()} ${path}`));
  if (operation.parameters) {
    const rows = operation.parameters.map((one) => row(api, one.name, one.schema, one.required));
    details.append(make("h2", "In the path"), make("table", ...rows));
  }
  const body = operation.requestBody?.content["application/json"]?.schema;
  if (body) details.append(make("h2", "Body"), table(api, body));
  for (const [status, answer] of Object.entries(operation.responses)) {
    details.append(make("h2", `${status} ${answer.description ?? ""}`));
    const schema = answer.content?.["application/json"]?.schema;
    if (schema) details.append(table(api, schema));
  }
  return details;
}

async function main() {
  const api = await (await fetch("openapi.json")).json();
  const routes = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => route(api, path, method, operation)));
  document.getElementById("routes").replaceChildren(...routes);
}

main().catch((error) => document.getElementById("routes").replaceChildren(`openapi.json can't be shown: ${error.message}`));
