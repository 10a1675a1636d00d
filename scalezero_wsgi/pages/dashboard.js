"use strict";
// Keeps the table as the server has it, and sends the buttons' forms without leaving the page.
(() => {
  const ASK_EVERY = 500, ASK_AT_LEAST_EVERY = 8000; // milliseconds
  const find = (id) => document.getElementById(id);
  const page = document.querySelector("[data-functions]");
  const live = find("live"), said = find("said"), cut = find("cut"), search = find("q");
  let asked = 0, version = "";

  const say = (text) => {
    if (said.textContent !== text) said.textContent = text;
  };

  // Changes only what differs, so that a press, the focus and a selection outlive it. What has a key is no
  // other's: a button must not become another one under the mouse.
  const change = (old, fresh) => {
    if (old.nodeName !== fresh.nodeName || old.dataset?.key !== fresh.dataset?.key) return old.replaceWith(fresh);
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return undefined;
    }
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((each, at) => (before[at] ? change(before[at], each) : old.append(each)));
    before.slice(after.length).forEach((each) => each.remove());
    return undefined;
  };

  const look = async () => {
    const mine = ++asked;
    const answer = await fetch(page.dataset.functions + location.search, {
      headers: { Accept: "text/html", "If-None-Match": version },
      cache: "no-store",
      redirect: "manual",
      signal: AbortSignal.timeout?.(10000),
    });
    if (answer.status === 401 || answer.type === "opaqueredirect") return location.reload();
    if (answer.status === 304) return undefined;
    if (!answer.ok) throw new Error(answer.statusText);
    const text = await answer.text();
    if (mine !== asked) return undefined; // it was asked for anew meanwhile
    version = answer.headers.get("ETag");
    const fresh = document.createElement("div");
    for (const each of [...new DOMParser().parseFromString(text, "text/html").body.childNodes]) fresh.append(each);
    const before = [...live.childNodes], after = [...fresh.childNodes];
    after.forEach((each, at) => (before[at] ? change(before[at], each) : live.append(each)));
    before.slice(after.length).forEach((each) => each.remove());
    return undefined;
  };

  const isShown = () =>
    new Promise((resolve) => {
      if (!document.hidden) return resolve();
      return document.addEventListener("visibilitychange", resolve, { once: true });
    });

  let lost = false;
  const watch = async () => {
    let pause = ASK_EVERY;
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, pause));
      await isShown();
      try {
        await look();
        pause = ASK_EVERY;
        if (lost) say("");
        lost = false;
      } catch {
        pause = Math.min(2 * pause, ASK_AT_LEAST_EVERY);
        if (pause > 2 * ASK_EVERY) {
          lost = true;
          say("The server does not answer. Trying again.");
        }
      }
    }
  };

  document.addEventListener("submit", async (event) => {
    const button = event.submitter;
    if (event.target.id !== "act" || !button) return;
    event.preventDefault();
    const body = new URLSearchParams(new FormData(event.target));
    body.set(button.name, button.value);
    cut.hidden = true;
    say("…");
    try {
      const answer = await fetch(button.formAction, { method: "POST", body, headers: { Accept: "application/json" } });
      if (answer.status === 401) return location.reload();
      const told = await answer.json();
      say(told.said);
      cut.value = body.get("function");
      cut.hidden = !told.may_cut;
    } catch {
      say("The server does not answer. Load the page again to see what has become of it.");
    }
    return look().catch(() => {});
  });

  let typed;
  search.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => {
      const place = new URLSearchParams(location.search);
      for (const name of ["page", "said", "mark", "cut"]) place.delete(name);
      if (search.value) place.set("q", search.value);
      else place.delete("q");
      history.replaceState(null, "", place.size ? `?${place}` : location.pathname);
      look().catch(() => {});
    }, 150);
  });
  watch();
})();
