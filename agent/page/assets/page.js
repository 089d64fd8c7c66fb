"use strict";
// Keeps the page as the agent sees things: asks for its changing part every few seconds,
// and changes what differs. What has the focus, is open or is selected stays so.
(() => {
  const pause = 5000, patience = 25000; // milliseconds
  const main = document.getElementById("main");
  const live = document.getElementById("live");
  const gone = document.getElementById("gone");
  const goneText = document.getElementById("gone-text");
  const clock = document.getElementById("clock");
  const clockText = document.getElementById("clock-text");
  let tag = "", answered = new Date(), asking = false, timer = 0;

  // patch makes a node like another one, by as few changes as it takes.
  function patch(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== Node.ELEMENT_NODE || old.nodeName !== fresh.nodeName || old.id !== fresh.id) {
      old.replaceWith(fresh);
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    patchChildren(old, fresh);
  }

  // patchChildren finds those that have an id by it, and takes the others in their order.
  function patchChildren(old, fresh) {
    const named = new Map([...old.children].filter((c) => c.id).map((c) => [c.id, c]));
    const kept = new Set([...fresh.children].map((c) => c.id));
    for (const [id, child] of named) if (!kept.has(id)) child.remove();
    let at = old.firstChild;
    for (const want of [...fresh.childNodes]) {
      const have = want.id ? named.get(want.id) : at && !at.id ? at : null;
      if (!have) {
        old.insertBefore(want, at);
      } else if (have !== at) {
        old.insertBefore(have, at);
        patch(have, want);
      } else {
        at = at.nextSibling;
        patch(have, want);
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  function update(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("main");
    if (!fresh) throw new Error("no status in the answer");
    const focus = document.activeElement, before = main.dataset.announcement;
    patch(main, document.adoptNode(fresh));
    if (focus && focus.id && document.activeElement !== focus) {
      document.getElementById(focus.id)?.focus({ preventScroll: true }); // it was moved
    }
    if (main.dataset.announcement !== before) live.textContent = main.dataset.announcement;
    document.title = main.dataset.title;
  }

  function answer() {
    answered = new Date();
    clock.className = "clock fresh";
    clockText.textContent = "Live, " + answered.toLocaleTimeString([], { hour12: false });
    if (!gone.hidden) {
      gone.hidden = true;
      goneText.textContent = "";
      live.textContent = "The agent answers again.";
    }
  }

  function noAnswer() {
    clock.className = "clock stale";
    clockText.textContent = "Not live";
    if (!gone.hidden) return; // it is said once
    goneText.textContent = "The agent has given no answer since " + answered.toLocaleTimeString([], { hour12: false }) +
      ". What you see is of then.";
    gone.hidden = false;
  }

  async function ask() {
    const headers = tag ? { "If-None-Match": tag } : {};
    const response = await fetch("/fragment" + location.search, { headers, cache: "no-store", signal: AbortSignal.timeout(patience) });
    if (response.status === 401) {
      location.replace("/login");
      return;
    }
    if (response.status === 200) {
      update(await response.text());
      tag = response.headers.get("ETag") || "";
    } else if (response.status !== 304) {
      throw new Error("status " + response.status);
    }
    answer();
  }

  async function poll() {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    try {
      await ask();
    } catch {
      noAnswer();
    }
    asking = false;
    if (!document.hidden) timer = setTimeout(poll, pause);
  }

  document.addEventListener("visibilitychange", () => document.hidden ? clearTimeout(timer) : poll());
  addEventListener("pageshow", (event) => event.persisted && poll());
  answer();
  timer = setTimeout(poll, pause);
})();
