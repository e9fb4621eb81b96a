// Shows the events of a stream token. Everything is set as text: what an event says is never markup here.

const SHOWN_AT_MOST = 200;
const list = document.querySelector("#events");
const status = document.querySelector("#status");
const byKey = new Map();
let socket = null;

function say(state, text) {
  status.dataset.state = state;
  status.textContent = text;
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function add(item) {
  list.prepend(item);
  while (list.children.length > SHOWN_AT_MOST) list.lastElementChild.remove();
}

function notice(text) {
  const item = element("li", text);
  item.className = "notice";
  add(item);
}

function show(event) {
  const { channel, type, time, data } = event;
  const item = document.createElement("li");
  if (type === "notification.raised") {
    item.append(element("h2", data.title));
    if (data.body) item.append(element("p", data.body));
    if (Object.keys(data.data).length) item.append(element("pre", JSON.stringify(data.data, null, 2)));
  } else {
    item.append(element("h2", type), element("pre", JSON.stringify(data, null, 2)));
  }
  const footer = document.createElement("footer");
  footer.append(element("span", channel), element("time", new Date(time).toLocaleString()));
  item.append(footer);
  // A later notification with the same key takes the place of the earlier one.
  const key = data?.key ? `${channel} ${data.key}` : null;
  if (key) {
    byKey.get(key)?.remove();
    byKey.set(key, item);
  }
  add(item);
}

// The notifier's own messages; what has a channel is an event.
const OWN = {
  ready: (message) => say("live", `live on ${message.data.channels.join(", ")}`),
  gap: (message) => notice(message.data.detail),
  evicted: (message) => notice(message.data.detail),
  expired: (message) => notice(message.data.detail),
  problem: (message) => notice(message.data.detail),
};
const UNAUTHORIZED = 3000;
const FORBIDDEN = 3003;

function connect(token, lastId = null) {
  socket?.close();
  say("idle", "connecting");
  const mine = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/ws`);
  socket = mine;
  mine.onopen = () => {
    mine.send(JSON.stringify({ token, last_event_id: lastId }));
    if (lastId) say("live", "live again");
  };
  mine.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.id) lastId = message.id;
    if ("channel" in message) show(message);
    else OWN[message.type]?.(message);
  };
  mine.onclose = ({ code }) => {
    if (socket !== mine) return;
    if (code === UNAUTHORIZED || code === FORBIDDEN) return say("lost", "the token is wrong or over");
    say("lost", "connection lost, connecting again");
    // Not all pages at the same moment.
    setTimeout(() => socket === mine && connect(token, lastId), 1000 + Math.random() * 4000);
  };
}

document.querySelector("#connect").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = document.querySelector("#token").value.trim();
  document.querySelector("#token").value = "";
  if (token) connect(token);
});

// A link may bring the token behind the #, which browsers send to no server.
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  history.replaceState(null, "", location.pathname);
  connect(token);
}
