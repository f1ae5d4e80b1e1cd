// Where views get their data, and which one is shown: by the address behind #.
"use strict";
(() => {
  const { el } = draw;
  const OTHERS = ["node"]; // views that no tab leads to, but names do
  const TABS = [["now", "Now"], ["learning", "Learning"], ["lineage", "Lineage"], ["round", "A round"], ["ledger", "Ledger"], ["trust", "Trust"], ["network", "Network"]];
  const REST = 2500, SHARE = 50; // milliseconds between two looks at what changes, and times as long as a look takes

  // --- data: of the server, or of this file

  const manifest = document.getElementById("manifest");
  const kept = manifest ? JSON.parse(manifest.textContent) : null;
  const chunks = new Map();

  async function unpacked(number) {
    if (!chunks.has(number)) {
      const packed = Uint8Array.from(atob(document.getElementById(`chunk-${number}`).textContent.trim()), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      chunks.set(number, JSON.parse(await new Response(stream).text()));
    }
    return chunks.get(number);
  }

  function pathOf(name, given) {
    const words = Object.entries(given || {}).filter(([, value]) => value !== null && value !== undefined && value !== "");
    return words.length ? `${name}?${words.map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&")}` : name;
  }

  const has = (name, given) => !kept || pathOf(name, given) in kept.where;

  async function get(name, given) {
    const path = pathOf(name, given);
    if (kept) {
      if (!(path in kept.where)) throw new Error(kept.missing);
      return (await unpacked(kept.where[path]))[path];
    }
    let answer;
    try {
      answer = await fetch(`api/${path}`);
    } catch {
      throw new Error("The run's page does not answer: the run has ended, or its server has. Its report links to a page that stays.");
    }
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error || `The server answers ${answer.status}.`);
    return found;
  }

  // --- which view

  function address() {
    const [name, query] = location.hash.replace(/^#\/?/, "").split("?");
    return { name: TABS.some(([tab]) => tab === name) || OTHERS.includes(name) ? name : "now", given: Object.fromEntries(new URLSearchParams(query || "")) };
  }

  function go(name, given) {
    const query = new URLSearchParams(Object.entries(given || {}).filter(([, value]) => value !== null && value !== undefined && value !== "")).toString();
    location.hash = `#/${name}${query ? `?${query}` : ""}`;
  }

  const main = document.getElementById("main"), tabs = document.getElementById("tabs");
  let turn = 0, drawn = "", rest = REST;

  async function show(quietly) {
    const mine = ++turn, { name, given } = address(), began = performance.now();
    tabs.replaceChildren(...TABS.map(([tab, title]) => el("a", { href: `#/${tab}`, "aria-current": tab === name ? "page" : null }, title)));
    try {
      const now = await get("now");
      for (const node of now.nodes) draw.colour(node.name); // so that a node has its colour wherever one comes from
      draw.people.clear();
      for (const [whose, author] of Object.entries(now.people)) draw.people.set(whose, author);
      const body = await views[name]({ get, go, has, given, live: !kept });
      if (mine !== turn) return;
      const focused = document.activeElement?.getAttribute("data-key"), open = [...main.querySelectorAll("details[open][data-key]")].map((one) => one.dataset.key);
      const tall = main.offsetHeight;
      main.style.minHeight = `${tall}px`; // so that the page does not jump while it is drawn again
      main.replaceChildren(...[body].flat(9).filter(Boolean));
      for (const key of open) main.querySelector(`details[data-key="${CSS.escape(key)}"]`)?.setAttribute("open", "");
      if (focused) main.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
      requestAnimationFrame(() => { main.style.minHeight = ""; });
      if (!quietly && drawn && drawn !== name) { main.focus({ preventScroll: true }); scrollTo(0, 0); }
      drawn = name;
      head(now);
      rest = Math.min(60_000, Math.max(REST, SHARE * (performance.now() - began)));
      document.documentElement.dataset.ready = name;
    } catch (error) {
      if (mine !== turn) return;
      main.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
      if (!kept) setTimeout(() => mine === turn && show(true), 2 * REST); // a run that is still to begin, say
    }
  }

  async function head(now) {
    try {
      now = now || await get("now");
      document.getElementById("title").textContent = now.name;
      document.title = `${now.name}: ${now.status}`;
      const done = now.nodes.length ? Math.min(...now.nodes.map((node) => node.done)) : 0;
      const kind = { simulated: "simulated", swarm: "a local swarm", node: "a node of a swarm" }[now.kind];
      document.getElementById("state").replaceChildren(el("b", {}, now.status), ` · ${now.nodes.length === 1 ? "1 node" : `${now.nodes.length} nodes`}, ${kind} · round ${done}${now.rounds ? ` of ${now.rounds}` : ""} · ${draw.seconds(now.seconds)}`);
    } catch { /* the view has said so */ }
  }

  // --- changes: what stands in the view's own data is fetched again; what a reader has opened stays

  function follow() {
    const stream = new EventSource("api/events");
    let waiting = false, last = 0, pressed = false;
    const popovers = CSS.supports("selector(:popover-open)");
    const read = () => (popovers && document.querySelector(".word:popover-open")) || main.querySelector("tr.found");
    for (const [kind, down] of [["pointerdown", true], ["pointerup", false], ["pointercancel", false]]) addEventListener(kind, () => { pressed = down; });
    stream.addEventListener("change", () => {
      if (waiting || document.hidden) return;
      waiting = true;
      const wait = () => (pressed || read() ? setTimeout(wait, 100) : again());
      const again = () => {
        waiting = false;
        last = Date.now();
        const { name } = address();
        if (["now", "learning", "network", "trust", "node"].includes(name) || (name === "lineage" && !address().given.author)) show(true);
        else head();
      };
      setTimeout(wait, Math.max(0, rest - (Date.now() - last)));
    });
  }

  words.list(document.getElementById("words"));
  document.getElementById("foot").textContent = kept ? kept.foot : "Read from the run's folder on this machine; nothing leaves it.";
  addEventListener("hashchange", () => show(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(true));
  show(false);
  if (!kept) follow();
})();
