// The connection to the server: begun again by itself, and told what this viewer wants to see.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;
const HEADER_BYTES = 8;

export class Live {
  // on: {open(), lost(text), message(object), picture(source, index, blob)}
  constructor(on) {
    this.on = on;
    this.socket = null;
    this.waitMs = FIRST_WAIT_MS;
    this.connect();
  }

  connect() {
    const address = new URL("live", location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.socket = socket;
      this.waitMs = FIRST_WAIT_MS;
      this.on.open();
    };
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") {
        this.on.message(JSON.parse(data));
        return;
      }
      const head = new DataView(data, 0, HEADER_BYTES);
      const picture = new Blob([new Uint8Array(data, HEADER_BYTES)], { type: "image/jpeg" });
      this.on.picture(head.getUint8(0), head.getUint32(4, true), picture);
    };
    socket.onclose = async ({ code }) => {
      this.socket = null;
      this.on.lost(code === 1001 ? "the pipeline has ended" : opened ? "connection lost" : await refusal());
      setTimeout(() => this.connect(), this.waitMs);
      this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
    };
  }

  send(message) {
    if (this.socket !== null && this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }
}

// Why a WebSocket was refused, which browsers do not tell.
async function refusal() {
  try {
    const answer = await fetch("live", { cache: "no-store" });
    if (answer.status === 426) return "connection lost";
    if (answer.status === 403) return "token needed: load the page again";
    return (await answer.text()).trim();
  } catch {
    return "no answer";
  }
}
