// The live parts of the sample app. Everything is written as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);

function show(id, state) {
  byId(id).textContent = state;
  byId(id).className = `state ${state}`;
}

function connect() {
  const url = new URL("/live", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  socket.addEventListener("open", () => show("ws-state", "connected"));
  socket.addEventListener("close", () => {
    show("ws-state", "closed");
    setTimeout(connect, 3000);
  });
  socket.addEventListener("message", (event) => {
    const message = JSON.parse(event.data);
    if ("tick" in message) byId("ws-tick").textContent = message.tick;
    if ("echo" in message) byId("ws-echo").textContent = message.echo;
  });
  byId("ws-form").onsubmit = (event) => {
    event.preventDefault();
    if (socket.readyState === WebSocket.OPEN) socket.send(byId("ws-say").value);
  };
}

function listen() {
  const source = new EventSource("/events");
  source.addEventListener("open", () => show("sse-state", "connected"));
  source.addEventListener("error", () => show("sse-state", "closed"));
  source.addEventListener("message", (event) => {
    const { tick, time } = JSON.parse(event.data);
    byId("sse-tick").textContent = tick;
    byId("sse-time").textContent = time;
  });
}

byId("fetch").addEventListener("click", async () => {
  const box = byId("fetch-result");
  box.hidden = false;
  try {
    const answer = await fetch("/api/me", { headers: { accept: "application/json" } });
    box.textContent = `${answer.status}\n${JSON.stringify(await answer.json(), null, 2)}`;
  } catch (error) {
    box.textContent = String(error);
  }
});

connect();
listen();
