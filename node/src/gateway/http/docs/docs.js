// Shows /openapi.json: the operations by tag, what they take and answer, a curl line, and a form to call them.
// Everything from the document goes into the page as text, never as HTML.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];
const KEY = "roost-api-key";
let api;

/** An element; children are elements or text, attributes that are functions are listeners. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== ""));
  return made;
}

/** Text with `code` in backquotes. */
const inline = (text = "") => text.split(/`([^`]+)`/).map((part, at) => (at % 2 ? el("code", {}, part) : part));

/** The same, one paragraph for each blank line. */
const prose = (text = "") => text.split(/\n\s*\n/).filter(Boolean).map((paragraph) => el("p", {}, inline(paragraph)));

function resolve(schema) {
  if (!schema?.$ref) return schema ?? {};
  const steps = schema.$ref.slice(2).split("/").map((step) => step.replaceAll("~1", "/").replaceAll("~0", "~"));
  return steps.reduce((value, step) => value?.[step], api) ?? {};
}

const nameOf = (schema) => schema?.$ref?.split("/").pop();
const options = (schema) => schema.oneOf ?? schema.anyOf;
const isNull = (schema) => schema.type === "null";

/** A type in words, such as "array of string, or null". */
function typeOf(schema) {
  if (schema?.$ref) return nameOf(schema);
  if (!schema) return "any JSON";
  if (options(schema)) return options(schema).map((option) => (isNull(option) ? "null" : typeOf(option))).join(" or ");
  if (schema.allOf) return schema.allOf.map(typeOf).join(" and ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  const types = [schema.type ?? (schema.properties ? "object" : "any JSON")].flat();
  return types.map((type) => {
    if (type === "array") return `array of ${typeOf(schema.items)}`;
    if (type === "object" && schema.additionalProperties) return `object of ${typeOf(schema.additionalProperties)}`;
    return schema.format && type !== "null" ? `${type} (${schema.format})` : type;
  }).join(" or ");
}

/** What bounds a value, such as "from 1, at most 100 items". */
function bounds(schema) {
  const words = { minimum: "from", maximum: "to", minLength: "characters from", maxLength: "characters to", minItems: "items from",
    maxItems: "items to", pattern: "matches", default: "default" };
  return Object.entries(words).filter(([name]) => schema[name] !== undefined && schema[name] !== null)
    .map(([name, word]) => `${word} ${typeof schema[name] === "string" ? schema[name] : JSON.stringify(schema[name])}`).join(", ");
}

/** The schema with fields that lies in this one: itself, its items, its values or its only option. */
function inner(schema) {
  const whole = resolve(schema);
  if (whole.properties) return [schema, whole];
  const next = options(whole)?.filter((option) => !isNull(option)) ?? [];
  if (next.length === 1) return inner(next[0]);
  if (whole.items) return inner(whole.items);
  if (typeof whole.additionalProperties === "object") return inner(whole.additionalProperties);
  return [];
}

/** The fields of a schema, and of those within it. */
function fields(schema, above = []) {
  const [at, whole] = inner(schema);
  if (!whole) return "";
  const name = nameOf(at);
  if (name && above.includes(name)) return el("p", { class: "faint" }, `as ${name} above`);
  return el("ul", { class: "schema" }, Object.entries(whole.properties).map(([field, value]) => {
    const facts = [typeOf(value), bounds(resolve(value)), whole.required?.includes(field) ? "required" : "optional"];
    const text = value.description ?? resolve(value).description;
    return el("li", {}, el("p", {}, el("code", {}, field), " ", el("span", { class: "faint" }, facts.filter(Boolean).join(", "))),
      prose(text), fields(value, name ? [...above, name] : above));
  }));
}

/** The schema's example, or one made of those of its fields. */
function example(schema, depth = 0) {
  const whole = resolve(schema);
  for (const found of [schema?.example, schema?.examples?.[0], whole.example, whole.examples?.[0], whole.default, whole.enum?.[0]]) {
    if (found !== undefined) return found;
  }
  const option = options(whole)?.find((candidate) => !isNull(candidate)) ?? whole.allOf?.[0];
  if (option) return example(option, depth);
  const type = [whole.type].flat().find((candidate) => candidate !== "null");
  if (whole.properties && depth < 6) {
    return Object.fromEntries(Object.entries(whole.properties).map(([field, value]) => [field, example(value, depth + 1)]));
  }
  if (type === "array") return depth < 6 ? [example(whole.items, depth + 1)] : [];
  return { string: "text", integer: whole.minimum ?? 0, number: 0, boolean: false }[type] ?? {};
}

const pretty = (value) => JSON.stringify(value, null, 2);
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const apiKey = () => sessionStorage.getItem(KEY) ?? "";

/** What one operation is: its place, its parameters resolved, its body's type. */
function operationOf(path, method, item) {
  const operation = item[method];
  const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map(resolve);
  const [media, content] = Object.entries(resolve(operation.requestBody).content ?? {})[0] ?? [];
  return { path, method, operation, parameters, media, body: content?.schema, sample: content?.example,
    id: operation.operationId ?? `${method}${path}`, keyed: (operation.security ?? []).length > 0 };
}

/** The form of one operation: gives the request that it makes now, and tells of changes. */
function formOf({ path, method, parameters, media, body, sample, keyed }, changed) {
  const inputs = parameters.map((parameter) => {
    const shown = parameter.example ?? parameter.schema?.example;
    const input = el("input", { value: parameter.required && shown !== undefined ? String(shown) : "", input: changed,
      placeholder: shown !== undefined ? String(shown) : typeOf(parameter.schema), "aria-label": parameter.name });
    return { parameter, input };
  });
  const text = body && el("textarea", { rows: 8, spellcheck: "false", input: changed, "aria-label": "Body" }, pretty(sample ?? example(body)));
  const request = () => {
    let url = path;
    const query = new URLSearchParams();
    const headers = {};
    for (const { parameter, input } of inputs) {
      if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value === "") continue;
      else if (parameter.in === "query") query.append(parameter.name, input.value);
      else if (parameter.in === "header") headers[parameter.name] = input.value;
    }
    if (keyed) headers.Authorization = `Bearer ${apiKey() || "dev-key"}`;
    if (text) headers["Content-Type"] = media;
    return { url: query.size ? `${url}?${query}` : url, method: method.toUpperCase(), headers, body: text?.value };
  };
  const rows = inputs.map(({ parameter, input }) => [el("label", {}, el("code", {}, parameter.name)), input]);
  return { request, element: el("div", {}, inputs.length ? el("div", { class: "fields" }, rows) : "", text ?? "") };
}

function curl({ url, method, headers, body }) {
  const parts = [`curl ${method === "GET" ? "" : `-X ${method} `}${quoted(location.origin + url)}`];
  for (const [name, value] of Object.entries(headers)) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (body !== undefined) parts.push(`-d ${quoted(body)}`);
  return parts.join(" \\\n  ");
}

async function call({ url, ...request }, into) {
  const began = performance.now();
  into.textContent = "…";
  try {
    const answer = await fetch(url, request);
    const text = await answer.text();
    const retry = answer.headers.get("Retry-After");
    const head = `${answer.status} ${answer.statusText}, ${Math.round(performance.now() - began)} ms${retry ? `, Retry-After: ${retry}` : ""}`;
    let shown = text;
    try {
      // Numbers beyond 2^53 would change if they were read and written again.
      if (!/\d{16}/.test(text)) shown = pretty(JSON.parse(text));
    } catch { /* Not JSON: shown as it is. */ }
    into.textContent = `${head}\n\n${shown}`;
  } catch (error) {
    into.textContent = `No answer: ${error.message}`;
  }
}

function parametersOf({ parameters }) {
  if (!parameters.length) return "";
  return [el("h3", {}, "Parameters"), el("ul", { class: "schema" }, parameters.map((parameter) => {
    const facts = [`in ${parameter.in}`, typeOf(parameter.schema), bounds(resolve(parameter.schema)), parameter.required ? "required" : "optional"];
    return el("li", {}, el("p", {}, el("code", {}, parameter.name), " ", el("span", { class: "faint" }, facts.filter(Boolean).join(", "))),
      prose(parameter.description));
  }))];
}

function responsesOf({ operation }) {
  return [el("h3", {}, "Answers"), Object.entries(operation.responses ?? {}).map(([status, found]) => {
    const response = resolve(found);
    const schemas = Object.entries(response.content ?? {});
    const line = [el("code", {}, status), " ", inline(response.description)];
    const type = schemas.map(([media, { schema }]) => ` ${schema ? typeOf(schema) : media}`).join();
    const within = schemas.map(([, { schema }]) => (schema ? fields(schema) : "")).filter(Boolean);
    const summary = [...line, el("span", { class: "faint" }, type)];
    if (!within.length) return el("p", {}, summary);
    return el("details", { open: status.startsWith("2") }, el("summary", {}, summary), within);
  })];
}

function bodyOf(described) {
  if (!described.body) return "";
  return [el("h3", {}, "Body"), el("p", { class: "faint" }, `${described.media}, ${typeOf(described.body)}`),
    prose(resolve(described.body).description), fields(described.body)];
}

function show(described) {
  const { operation, method, path, id, keyed } = described;
  const command = el("pre", {});
  const answer = el("pre", { hidden: true, "aria-live": "polite" });
  const refresh = () => { command.textContent = curl(form.request()); };
  const form = formOf(described, refresh);
  const send = () => { answer.hidden = false; call(form.request(), answer); };
  const copy = () => navigator.clipboard?.writeText(command.textContent);
  // Made when it is opened first: the whole document at once would be slow to lay out.
  const fill = () => {
    refresh();
    if (inside.childElementCount) return;
    inside.append(...[prose(operation.description), keyed ? "" : el("p", { class: "faint" }, "No API key is needed."),
      parametersOf(described), bodyOf(described), responsesOf(described), el("h3", {}, "Try it"), form.element, command,
      el("p", {}, el("button", { click: send }, "Send"), " ", el("button", { click: copy }, "Copy as curl")), answer]
      .flat(3).filter((part) => part !== ""));
  };
  const inside = el("div", {});
  return el("details", { class: "operation", id, toggle: fill }, el("summary", {},
    el("span", { class: `method ${method}` }, method.toUpperCase()), el("span", { class: "path" }, path),
    el("span", { class: "faint" }, inline(operation.summary))), inside);
}

/** Opens the operation that the address names. */
function open() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!named) return;
  named.open = true;
  named.scrollIntoView();
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/);
  for (const link of document.querySelectorAll("[data-words]")) link.hidden = !words.every((word) => link.dataset.words.includes(word));
  for (const part of document.querySelectorAll("section")) part.hidden = !part.querySelector("[data-words]:not([hidden])");
}

function keyField() {
  const keep = ({ target }) => {
    sessionStorage.setItem(KEY, target.value);
    for (const opened of document.querySelectorAll("details.operation[open]")) opened.dispatchEvent(new Event("toggle"));
  };
  return el("div", { class: "key" }, el("label", { for: "key" }, "API key"),
    el("input", { id: "key", value: apiKey(), placeholder: "dev-key", autocomplete: "off", input: keep }),
    el("span", { class: "faint" }, "kept in this tab only"));
}

function render() {
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => operationOf(path, method, item)));
  const known = (api.tags ?? []).map((tag) => tag.name);
  const others = operations.map(({ operation }) => operation.tags?.[0] ?? "other").filter((name) => !known.includes(name));
  const tags = [...(api.tags ?? []), ...[...new Set(others)].map((name) => ({ name }))];
  const page = [el("h1", {}, `${api.info.title} ${api.info.version}`), prose(api.info.description),
    el("p", {}, el("a", { href: "/openapi.json" }, `OpenAPI ${api.openapi}`)), keyField()];
  const contents = [];
  for (const { name, description } of tags) {
    const here = operations.filter(({ operation }) => (operation.tags?.[0] ?? "other") === name);
    const words = ({ method, path, id, operation }) => `${name} ${method} ${path} ${id} ${operation.summary ?? ""}`.toLowerCase();
    const shown = here.map((described) => {
      const element = show(described);
      element.dataset.words = words(described);
      return element;
    });
    const links = here.map((described) => el("a", { href: `#${encodeURIComponent(described.id)}`, "data-words": words(described) },
      el("span", { class: `method ${described.method}` }, described.method.toUpperCase()), " ", described.path.replace(/^\/v1/, "")));
    page.push(el("section", {}, el("h2", {}, name), prose(description), shown));
    contents.push(el("section", {}, el("h2", {}, name), links));
  }
  document.getElementById("page").replaceChildren(...page.flat());
  document.getElementById("contents").replaceChildren(...contents);
  document.getElementById("filter").addEventListener("input", ({ target }) => filter(target.value.trim()));
  addEventListener("hashchange", open);
  open();
}

fetch("/openapi.json").then((answer) => answer.json()).then((found) => { api = found; render(); }).catch((error) => {
  document.getElementById("page").replaceChildren(el("p", {}, `The document cannot be shown: ${error.message}`));
});
