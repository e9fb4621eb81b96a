"use strict";
// Text reaches the page by textContent alone: what is in a mail or a message never becomes markup.
const $ = (id) => document.getElementById(id);
let key = sessionStorage.getItem("bellhop-key") || "";

async function call(path, method = "GET", body) {
  const headers = { Authorization: `Bearer ${key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await answer.text();
  const value = text ? JSON.parse(text) : null;
  if (!answer.ok) throw new Error(value?.detail || `${answer.status}`);
  return value;
}

function cell(text, kind = "td", className = "") {
  const element = document.createElement(kind);
  if (text instanceof Node) element.append(text); else element.textContent = text ?? "";
  element.className = className;
  return element;
}

function table(id, names, rows) {
  const head = document.createElement("tr");
  for (const name of names) head.append(cell(name, "th", typeof rows[0]?.[names.indexOf(name)] === "number" ? "number" : ""));
  const body = rows.map((row) => {
    const line = document.createElement("tr");
    for (const value of row) line.append(cell(value, "td", typeof value === "number" ? "number" : ""));
    return line;
  });
  if (!rows.length) body.push(cell("none", "td", "quiet"));
  $(id).replaceChildren(head, ...body);
}

function button(label, action) {
  const element = document.createElement("button");
  element.textContent = label;
  element.onclick = () => action().then(refresh, (error) => say(error.message, "bad"));
  return element;
}

function say(text, className) { $("state").textContent = text; $("state").className = className; }

async function detail(path) {
  $("detail").querySelector("pre").textContent = JSON.stringify(await call(path), null, 2);
  $("detail").showModal();
}

function cards(system) {
  const items = { ...system.tasks, "outbox": system.outbox.waiting, "dead letters": system.dead_letters, "unrouted": system.unrouted };
  $("cards").replaceChildren(...Object.entries(items).map(([name, count]) => {
    const card = document.createElement("div");
    const number = document.createElement("b");
    number.textContent = count.toLocaleString();
    card.className = "card";
    card.append(number, name);
    return card;
  }));
}

async function refresh() {
  if (!key) return;
  try {
    const [system, dead, tasks] = await Promise.all([call("/v1/system"), call("/v1/dead-letters?limit=20"), call("/v1/tasks?limit=20")]);
    document.querySelector("main").hidden = false;
    const alarms = system.broker.alarms || [];
    say(system.broker.unknown || (alarms.length ? `alarm: ${alarms.join(", ")}` : `up to date, ${new Date(system.at).toLocaleTimeString()}`), system.broker.unknown || alarms.length ? "bad" : "good");
    cards(system);
    table("queues", ["queue", "type", "consumers", "ready", "unacked", "in/s", "out/s"],
      (system.broker.queues || []).map((q) => [q.name, q.type, q.consumers, q.ready, q.unacked, q.published_per_second, q.delivered_per_second]));
    table("services", ["service", "replica", "connections", "since"],
      (system.broker.services || []).map((s) => [s.service, s.instance, Object.entries(s.connections).map(([name, state]) => `${name}: ${state}`).join(", "), s.since ? new Date(s.since).toLocaleString() : ""]));
    table("dead", ["when", "queue", "type", "reason", "error", "", "", ""], dead.dead_letters.map((d) => [
      new Date(d.died_at).toLocaleString(), d.queue, d.type, d.reason, d.error.slice(0, 160),
      button("look", () => detail(`/v1/dead-letters/${d.id}`)),
      button("replay", () => call(`/v1/dead-letters/${d.id}/replay`, "POST")),
      button("delete", () => call(`/v1/dead-letters/${d.id}`, "DELETE"))]));
    table("tasks", ["created", "to", "lane", "state", "attempt", ""], tasks.tasks.map((t) => [
      new Date(t.created_at).toLocaleString(), t.to, t.lane, t.state, t.attempt, button("look", () => detail(`/v1/tasks/${t.id}`))]));
  } catch (error) { say(error.message, "bad"); }
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim() || key;
  $("key").value = "";
  sessionStorage.setItem("bellhop-key", key);
  refresh();
});
refresh();
setInterval(refresh, 3000);
