// The page: who is asked, which view is shown.

import { html, nothing, render } from "./vendor/lit-html.js";
import { Refusal, read, useKey } from "./api.js";
import { chat } from "./chat.js";
import { drawnBy, state, update } from "./state.js";
import { switches } from "./switch.js";
import { load, traffic } from "./traffic.js";

const VIEWS = { chat: ["Chat", chat], traffic: ["Traffic", traffic], switch: ["Switch", switches] };

function page() {
  return html`
    <a class="skip" href="#main" @click=${skip}>To the content</a>
    <header>
      <h1>SafeSwitch</h1>
      ${state.about ? nav() : nothing}
      ${state.about ? html`<p class="note">${state.about.model}, policy ${state.about.policy}</p>` : nothing}
    </header>
    <main id="main" tabindex="-1">${state.about ? VIEWS[state.view][1]() : entrance()}</main>
    <p class="unseen" role="status">${state.said}</p>`;
}

/** The address of the view stays as it is. */
function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

function nav() {
  return html`
    <nav aria-label="Views">
      ${Object.entries(VIEWS).map(([name, [title]]) => html`<a href="#${name}" aria-current=${name === state.view ? "page" : nothing}>${title}</a>`)}
    </nav>`;
}

function entrance() {
  return html`
    ${state.problem ? html`<p class="problem" role="alert">${state.problem}</p>` : nothing}
    ${state.needsKey ? keyForm() : nothing}`;
}

function keyForm() {
  return html`
    <form class="key" @submit=${enter}>
      <label for="key">API key</label>
      <input id="key" type="password" autocomplete="off" required>
      <button class="main" type="submit">Enter</button>
      <p class="note">It needs the right to see scores. It is kept in memory until this page is closed.</p>
    </form>`;
}

function enter(event) {
  event.preventDefault();
  useKey(document.getElementById("key").value);
  begin();
}

async function begin() {
  const asked = state.needsKey;
  try {
    state.about = await read("about");
    state.problem = "";
    show();
    if (asked) requestAnimationFrame(() => document.getElementById("main").focus()); // the form is gone
  } catch (error) {
    const keyless = error instanceof Refusal && error.status === 401;
    state.needsKey = keyless || asked;
    state.problem = keyless && !asked ? "" : error.message;
  }
  update();
}

/** Show the view that the address names. */
function show() {
  const name = location.hash.slice(1);
  state.view = name in VIEWS ? name : "chat";
  document.title = `${VIEWS[state.view][0]} – SafeSwitch`;
  if (state.view === "traffic" && state.about?.records) load();
  update();
}

drawnBy(() => render(page(), document.getElementById("app")));
addEventListener("hashchange", show);
begin();
