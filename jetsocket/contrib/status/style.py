"""How the page looks, and the script that refreshes it in place; inline, so nothing else has to be served."""

from __future__ import annotations

import base64
import hashlib

CSS = """
:root { color-scheme: light dark;
  --paper: #fff; --panel: #f5f7fa; --ink: #16202c; --quiet: #506070; --rule: #d3dae3;
  --line: #1f6fb2; --area: #1f6fb22e; --cap: #a5520c; --link: #14599a; --bad: #a3261e; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #10161d; --panel: #18212b; --ink: #e6ecf2; --quiet: #a3b1bf; --rule: #33404e;
  --line: #6cb4ee; --area: #6cb4ee33; --cap: #f0a35e; --link: #8cc4f5; --bad: #ff9d94; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
header, main { max-width: 76rem; margin: 0 auto; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; align-items: baseline; }
h1 { font-size: 1.25rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 0; min-width: 0; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 1.1rem 0 .35rem; }
p { margin: .25rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
nav { display: flex; gap: 1rem; }
nav a { padding: .15rem 0; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
section { border-top: 1px solid var(--rule); margin-top: 1.25rem; padding-top: 1rem; }
.quiet { color: var(--quiet); }
.bad { color: var(--bad); }
.title { display: flex; flex-wrap: wrap; gap: .25rem .9rem; align-items: baseline; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem;
  list-style: none; margin: .7rem 0 .4rem; padding: 0; }
.cards li { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px;
  padding: .45rem .6rem .5rem; }
.cards b { font-size: 1.5rem; font-weight: 600; line-height: 1.2; margin-right: .3rem; }
.cards small { display: block; font-size: .8rem; color: var(--quiet); }
svg { display: block; width: 100%; height: 3rem; margin: .25rem 0; border-bottom: 1px solid var(--rule); }
svg path { fill: none; vector-effect: non-scaling-stroke; }
svg .minutes { stroke: var(--rule); stroke-width: 1; }
svg .area { fill: var(--area); }
svg .line { stroke: var(--line); stroke-width: 1.3; }
svg .cap { stroke: var(--cap); stroke-width: 1.2; stroke-dasharray: 4 3; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }
.scroll p { padding: 0 .7rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .3rem .55rem; text-align: left; white-space: nowrap; border-top: 1px solid var(--rule); }
td span { display: inline-block; width: max-content; white-space: normal; overflow-wrap: anywhere; }
.uri { max-width: clamp(9rem, 40vw, 22rem); }
.long { max-width: clamp(9rem, 40vw, 14rem); }
thead th { border-top: 0; background: var(--panel); font-weight: 600; }
.number { text-align: right; }
.errors { list-style: none; margin: 0; padding: 0; font-size: .9rem; }
.errors li { padding: .3rem 0; border-top: 1px solid var(--rule); overflow-wrap: anywhere; }
.errors li:first-child { border-top: 0; }
button { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--quiet);
  border-radius: 6px; padding: .2rem .8rem; min-height: 1.9rem; max-width: 100%; overflow-wrap: anywhere;
  text-align: left; cursor: pointer; }
form { margin: .7rem 0 0; }
@media (forced-colors: active) { svg .line { stroke: CanvasText; } svg .area { fill: none; } }
@media print { nav, form { display: none; } }
"""

# Replaces only what has changed, and nothing that can have the focus; leaves alone who selects text.
SCRIPT = """
(() => {
  "use strict";
  const every = 2000;
  const note = document.getElementById("note");  // outside of what is replaced
  const live = (page) => [...page.querySelectorAll("[data-live]")];
  const names = (parts) => parts.map((part) => part.dataset.live).join();
  function put(fresh) {
    if (!fresh.querySelector("main[data-jetsocket]")) throw new Error("another page came");
    const mine = live(document), theirs = live(fresh);
    if (names(mine) === names(theirs)) {
      mine.forEach((part, place) => {
        if (part.innerHTML !== theirs[place].innerHTML) part.replaceChildren(...theirs[place].childNodes);
      });
    } else {
      document.querySelector("main").replaceWith(fresh.querySelector("main"));
    }
  }
  async function refresh() {
    if (!document.hidden && getSelection().isCollapsed) {
      try {
        const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
        if (!answer.ok) throw new Error("HTTP " + answer.status);
        put(new DOMParser().parseFromString(await answer.text(), "text/html"));
        if (note.textContent) note.textContent = "";
      } catch (error) {
        const told = "Not refreshed any more: " + error.message;
        if (note.textContent !== told) note.textContent = told;
      }
    }
    setTimeout(refresh, every);
  }
  setTimeout(refresh, every);
})();
"""


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline element with that text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HASH_OF_CSS = _hash(CSS)
HASH_OF_SCRIPT = _hash(SCRIPT)
