// What the page knows, in one place. Views read it; whoever changes it calls update().

export const state = {
  about: null, // what the server says of itself and of this client
  problem: "", // why the page cannot be shown
  needsKey: false,
  view: "chat",
  turns: [], // see chat.js
  draft: "",
  busy: null, // AbortController of the replies that are being written
  paced: true,
  goesOn: false, // whether earlier turns are sent along
  others: {}, // thresholds of the sliders, where they differ from those in force
  cursor: null, // the token that is looked at: {strip, place}
  days: 7,
  traffic: null,
  said: "", // what a screen reader is told
};

let draw = () => {};
let planned = false;

/** Name the function that draws the page. */
export function drawnBy(render) {
  draw = render;
}

/** Draw the page anew before the next frame. */
export function update() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    draw();
  });
}

/** The bundle that this client is served with. */
export function card() {
  return state.about.bundles[state.about.bundle];
}
