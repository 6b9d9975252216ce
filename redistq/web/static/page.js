// A live page: its sections are replaced as they change, and what a reader has opened, chosen or
// focused stays. Buttons act without leaving the page. Without this file forms and links do.
"use strict";

(() => {
  const main = document.getElementById("main");
  const link = document.getElementById("link");
  const ask = document.getElementById("ask");
  const form = document.getElementById("act");
  let source = null;
  let retry = 0;
  let since = "";
  let pending = false;

  // -- sections ----------------------------------------------------------------------------------

  const keyOf = (node) => (node.dataset ? node.dataset.key : undefined);

  function same(one, other) {
    return one.nodeType === other.nodeType && one.nodeName === other.nodeName;
  }

  function attributes(node, want) {
    for (const { name, value } of [...want.attributes]) {
      if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    }
    for (const { name } of [...node.attributes]) {
      const isReaders = name === "open" && node.nodeName === "DETAILS";
      if (!want.hasAttribute(name) && !isReaders) node.removeAttribute(name);
    }
  }

  function children(node, want) {
    const keyed = new Map();
    for (const child of node.children) {
      if (keyOf(child) !== undefined) keyed.set(keyOf(child), child);
    }
    let at = node.firstChild;
    for (const wanted of [...want.childNodes]) {
      const key = keyOf(wanted);
      let have = key === undefined ? at : keyed.get(key);
      while (key === undefined && have && keyOf(have) !== undefined) have = have.nextSibling;
      if (!have || !same(have, wanted)) {
        node.insertBefore(wanted, at);
        continue;
      }
      if (have === at) at = at.nextSibling;
      else node.insertBefore(have, at);
      morph(have, wanted);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  function morph(node, want) {
    if (node.nodeType !== Node.ELEMENT_NODE) {
      if (node.data !== want.data) node.data = want.data;
      return;
    }
    if (node.isEqualNode(want)) return;
    attributes(node, want);
    children(node, want);
  }

  function show(parts) {
    const focused = document.activeElement;
    for (const [name, html] of Object.entries(parts)) {
      const part = main.querySelector(`[data-part="${name}"]`);
      if (!part) continue;
      const template = document.createElement("template");
      template.innerHTML = html;
      children(part, template.content);
    }
    if (focused !== document.activeElement && focused.isConnected) focused.focus();
  }

  // -- the connection ----------------------------------------------------------------------------

  function say(text, state) {
    if (link.textContent !== text) link.textContent = text;
    link.className = state;
  }

  function lost() {
    since = since || new Date().toLocaleTimeString();
    say(`No answer since ${since}: trying again. What you see is from before.`, "lost");
  }

  async function whyRefused() {
    try {
      const answer = await fetch(location.href, { method: "HEAD" });
      if (answer.status === 401) say("The token is another now: open the new address.", "lost");
    } catch (error) {
      // nothing answers, which is said already
    }
  }

  function connect() {
    if (source || document.hidden) return;
    source = new EventSource(main.dataset.live);
    source.addEventListener("parts", (message) => {
      retry = 0;
      since = "";
      say("live", "live");
      show(JSON.parse(message.data));
    });
    source.onerror = () => {
      lost();
      if (!source || source.readyState !== EventSource.CLOSED) return;
      disconnect();
      whyRefused();
      retry = Math.min(retry + 1, 5);
      setTimeout(connect, 2000 * retry);
    };
  }

  function disconnect() {
    if (source) source.close();
    source = null;
  }

  // -- actions -----------------------------------------------------------------------------------

  function answerTo(question, yes) {
    document.getElementById("question").textContent = question;
    ask.querySelector(".yes").textContent = yes;
    ask.returnValue = "";
    ask.showModal();
    return new Promise((resolve) => {
      ask.addEventListener("close", () => resolve(ask.returnValue === "yes"), { once: true });
    });
  }

  async function send(fields) {
    const answer = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams(fields),
      headers: { Accept: "application/json" },
    });
    const said = answer.headers.get("content-type").includes("json")
      ? await answer.json()
      : { error: await answer.text() };
    if (said.error) say(said.error, "lost");
    else if (said.question && (await answerTo(said.question, said.yes))) {
      await send({ ...fields, sure: "1" });
    }
  }

  async function act(event) {
    event.preventDefault();
    if (pending) return;
    pending = true;
    const button = event.submitter;
    button.setAttribute("aria-busy", "true");
    try {
      await send({ what: button.value });
    } catch (error) {
      lost();
    } finally {
      pending = false;
      button.removeAttribute("aria-busy");
    }
  }

  if (form) {
    form.addEventListener("submit", act);
    for (const button of ask.querySelectorAll("button")) {
      button.addEventListener("click", () => ask.close(button.value));
    }
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", connect);
  connect();
})();
