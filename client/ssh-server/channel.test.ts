import assert from "node:assert/strict";
import fc from "fast-check";
import { Channel, type ChannelWire, MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES } from "./channel.ts";

class Wire implements ChannelWire {
  log: string[] = [];
  sent: Buffer[] = [];
  largest = 0;
  adjusted = 0;
  full = false;
  data(_: number, bytes: Buffer): void {
    this.sent.push(bytes);
    this.largest = Math.max(this.largest, bytes.length);
    this.log.push("data");
  }
  stderr(_: number, bytes: Buffer): void {
    this.sent.push(bytes);
    this.largest = Math.max(this.largest, bytes.length);
    this.log.push("stderr");
  }
  eof(): void {
    this.log.push("eof");
  }
  close(): void {
    this.log.push("close");
  }
  adjust(_: number, bytes: number): void {
    this.adjusted += bytes;
  }
  isFull(): boolean {
    return this.full;
  }
  get sentBytes(): number {
    return this.sent.reduce((sum, { length }) => sum + length, 0);
  }
}

function open(wire: Wire, window: number, packetSize = MAX_PACKET_BYTES): Channel {
  return new Channel(wire, { localId: 1, remoteId: 2 }, { window, packetSize });
}

describe("a channel of the SSH connection", () => {
  it("sends what is written, in order, never more than window, packet size and pipe allow", () => {
    const anyStep = fc.oneof(
      fc.record({
        kind: fc.constant("write" as const),
        stderr: fc.boolean(),
        bytes: fc.uint8Array({ maxLength: 300 }),
      }),
      fc.record({ kind: fc.constant("adjust" as const), bytes: fc.nat(200) }),
      fc.record({ kind: fc.constant("pipe" as const), full: fc.boolean() }),
    );
    fc.assert(
      fc.property(fc.nat(100), fc.nat(64), fc.array(anyStep, { maxLength: 60 }), (window, packet, steps) => {
        const wire = new Wire();
        const channel = open(wire, window, packet);
        const written: Buffer[] = [];
        let allowed = window;
        let drains = 0;
        let waits = 0;
        channel.onDrain = () => drains++;
        for (const step of steps) {
          if (step.kind === "write") {
            written.push(Buffer.from(step.bytes));
            const before = wire.sentBytes;
            const more = channel.write(step.bytes, step.stderr ? "stderr" : "data");
            if (!more) waits++;
            if (wire.full) assert.equal(wire.sentBytes, before);
          } else if (step.kind === "adjust") {
            allowed += step.bytes;
            channel.receiveAdjust(step.bytes);
          } else {
            wire.full = step.full;
            if (!step.full) channel.pump();
          }
          assert.ok(wire.sentBytes <= allowed);
          assert.ok(drains <= waits);
        }
        assert.ok(wire.largest <= Math.max(1, packet));
        wire.full = false;
        channel.receiveAdjust(1_000_000);
        assert.deepEqual(Buffer.concat(wire.sent), Buffer.concat(written));
        assert.ok(channel.write(new Uint8Array(1)));
      }),
    );
  });

  it("says result, EOF and CLOSE behind the last byte", () => {
    const wire = new Wire();
    const channel = open(wire, 3);
    channel.write(Buffer.from("abcdef"));
    channel.whenWritten(() => wire.log.push("result"));
    channel.eof();
    channel.close();
    assert.deepEqual(wire.log, ["data"]);
    channel.receiveAdjust(3);
    assert.deepEqual(wire.log, ["data", "data", "result", "eof", "close"]);
    channel.receiveClose();
    assert.deepEqual(wire.log.at(-1), "close");
    assert.equal(channel.isClosed, true);
  });

  it("answers the client's CLOSE once, and drops what it did not take", () => {
    const wire = new Wire();
    const channel = open(wire, 1);
    let closed = 0;
    channel.onClose = () => closed++;
    channel.write(Buffer.from("abc"));
    channel.receiveClose();
    channel.receiveClose();
    channel.lose();
    channel.receiveAdjust(10);
    assert.deepEqual(wire.log, ["data", "close"]);
    assert.equal(closed, 1);
  });

  it("gives back window for what was taken, in large pieces, and refuses more than it gave", () => {
    const wire = new Wire();
    const channel = open(wire, 0);
    const chunk = Buffer.alloc(MAX_PACKET_BYTES);
    let received = 0;
    channel.onData = ({ length }) => {
      received += length;
    };
    for (let i = 0; i < RECEIVE_WINDOW_BYTES / chunk.length; i++) assert.ok(channel.receiveData(chunk));
    assert.equal(channel.receiveData(Buffer.alloc(1)), false);
    assert.equal(received, RECEIVE_WINDOW_BYTES);
    assert.equal(wire.adjusted, 0);
    channel.consumed(1);
    assert.equal(wire.adjusted, 0);
    channel.consumed(RECEIVE_WINDOW_BYTES - 1);
    assert.equal(wire.adjusted, RECEIVE_WINDOW_BYTES);
    assert.ok(channel.receiveData(chunk));
  });

  it("takes no data after the client's EOF", () => {
    const channel = open(new Wire(), 0);
    const seen: string[] = [];
    channel.onData = () => seen.push("data");
    channel.onEof = () => seen.push("eof");
    channel.receiveEof();
    channel.receiveEof();
    channel.receiveData(Buffer.from("x"));
    assert.deepEqual(seen, ["eof"]);
  });
});
