"use strict";
// Shows how far the start has come, and loads the page again once the function is ready.
(() => {
  const ASK_EVERY = 400, ASK_AT_LEAST_EVERY = 10000; // milliseconds
  const GIVE_UP_AFTER = 600, LOAD_AGAIN_AFTER = 3; // seconds
  const page = document.querySelector("[data-status]");
  const find = (id) => document.getElementById(id);
  const expected = Number(page.dataset.expected);
  let begun = performance.now() - 1000 * page.dataset.elapsed;
  const elapsed = () => (performance.now() - begun) / 1000;

  const inWords = (seconds) => {
    const whole = Math.floor(seconds);
    if (whole < 100) return whole === 1 ? "1 second" : `${whole} seconds`;
    return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  };

  // A screen reader reads each change of the note, and nothing else: so it changes seldom.
  const note = find("note");
  const usual = note && note.textContent;
  const say = (text) => {
    if (note && note.textContent !== text) note.textContent = text;
  };

  const show = () => {
    const parts = { text: find("elapsed"), bar: find("bar"), now: find("now") };
    const words = inWords(elapsed());
    if (parts.text && parts.text.textContent !== words) parts.text.textContent = words;
    // Full is only what is ready.
    if (parts.bar) parts.bar.value = Math.min(elapsed(), 0.97 * expected);
    if (parts.now) {
      const foot = parts.now.y.baseVal.value + parts.now.height.baseVal.value;
      const height = Math.max(2, 56 * Math.min(1, elapsed() / parts.now.dataset.full));
      parts.now.setAttribute("height", height);
      parts.now.setAttribute("y", foot - height);
    }
  };
  const ticking = setInterval(show, 250);

  const offer = () => {
    if (find("again")) find("again").hidden = false;
  };

  const fail = (text) => {
    clearInterval(ticking);
    document.title = `${page.dataset.function} did not start`;
    if (find("heading")) find("heading").textContent = document.title;
    if (find("going")) find("going").hidden = true;
    page.classList.add("failed");
    say(text);
    offer();
  };

  const goOn = () => {
    clearInterval(ticking);
    say("Ready. Opening it.");
    // Not location.replace: with a fragment in the URL that would load nothing.
    location.reload();
    setTimeout(offer, 5000); // a function may answer with a download, and the page stays
  };

  const ask = async () => {
    const signal = AbortSignal.timeout?.(10000);
    const answer = await fetch(page.dataset.status, { cache: "no-store", redirect: "manual", signal });
    // Something in front of us refuses this URL, or asks to log in: then the page has to be loaded again.
    const foreign = !answer.ok && answer.status < 500;
    return foreign ? { state: "foreign" } : answer.json();
  };

  const watch = async () => {
    let pause = ASK_EVERY, troubled = 0, unknown = 0;
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, pause));
      let told;
      try {
        told = await ask();
      } catch {
        told = { state: "lost" };
      }
      if (told.state === "ready") return goOn();
      if (told.state === "failed") return fail(told.detail);
      if (elapsed() > GIVE_UP_AFTER) return fail("It takes very long.");
      // Another worker may have the start, and a later question reach it. If none does, a load of the page is
      // a request, which has the function started again or gets its answer.
      unknown = told.state === "unknown" ? unknown || performance.now() : 0;
      if (unknown) {
        pause = ASK_EVERY;
        if (performance.now() > unknown + 1000 * LOAD_AGAIN_AFTER) return location.reload();
      } else if (told.state === "starting") {
        pause = ASK_EVERY;
        begun = Math.min(begun, performance.now() - 1000 * told.elapsed);
        // The provider may fail for a moment, and the start goes on.
        troubled = told.detail ? troubled + 1 : 0;
        if (troubled > 10) return fail(told.detail);
        say(told.detail || (expected && elapsed() > 1.5 * expected + 1 ? "It takes longer than usual." : usual));
      } else {
        pause = Math.min(2 * pause, ASK_AT_LEAST_EVERY);
        if (pause > 4 * ASK_EVERY) {
          if (told.state === "foreign") return location.reload();
          say("The server does not answer. Trying again.");
        }
      }
    }
  };
  watch();
})();
