// Browsers refuse workers to pages that are opened from disk. The search then runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      const begin = () => {
        document.body.append(frame)
        const inner = (this.inner = frame.contentWindow)
        inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
        const script = inner.document.createElement("script")
        script.src = new URL(url, location.href).href
        return new Promise(resolve => {
          script.onload = resolve
          inner.document.head.append(script)
        })
      }
      this.ready = begin()
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
