// The server's answers. The key is kept in memory alone: it is gone when the page is closed.

let key = "";

/** Send this key from now on. */
export function useKey(given) {
  key = given.trim();
}

/** An answer that is none, with the server's own words. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(`api/${path}`, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refusal(answer.status, told.error?.message ?? `the server answered ${answer.status}`);
}

/** The JSON at a path. */
export async function read(path) {
  return (await ask(path)).json();
}

/** Say what a request was that a switch flagged. */
export async function review(bundleId, textSha256, verdict) {
  await ask(`verdicts/${bundleId}/${textSha256}/${verdict}`, { method: "PUT" });
}

/** The events of one reply, as they come. */
export async function* reply(messages, policy, signal) {
  const wishes = policy ? { safeswitch: { policy } } : {};
  const answer = await ask("chat", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages, ...wishes }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(500, event.error.message);
      yield event;
    }
  }
}
