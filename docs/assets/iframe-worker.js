/* Search on pages that are opened from disk: a browser refuses workers there, so the search script
   runs in a hidden frame of the page instead. Does nothing when the pages come from a server. */
if (location.protocol === "file:") {
  const load = (inner, url) => new Promise((done, failed) => {
    const script = inner.document.createElement("script")
    script.src = url
    script.onload = done
    script.onerror = failed
    inner.document.body.append(script)
  })

  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inner = frame.contentWindow
      /* What the script would have as a worker: an answer goes to the page, more scripts come in. */
      this.inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inner.importScripts = (...urls) =>
        urls.reduce((before, one) => before.then(() => load(this.inner, one)), Promise.resolve())
      this.ready = load(this.inner, url)
    }

    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.inner.frameElement.remove()
    }
  }
}
