import assert from "node:assert/strict";
import { once } from "node:events";
import { MeshNodeError, MeshStream, STREAM_CODES, type StreamOwner } from "./stream.ts";

/** Takes everything that is written, and notes what is said about the stream. */
class Owner implements StreamOwner {
  readonly said: string[] = [];
  room = Number.POSITIVE_INFINITY;
  write(_: number, bytes: Uint8Array): number {
    const taken = Math.min(this.room, bytes.length);
    this.room -= taken;
    return taken;
  }
  end(): void {
    this.said.push("end");
  }
  read(): undefined {
    return undefined;
  }
  reset(_: number, code: number): void {
    this.said.push(`reset ${code}`);
  }
  stopSending(_: number, code: number): void {
    this.said.push(`stop ${code}`);
  }
  sendDatagram(_: number, bytes: Uint8Array): boolean {
    this.said.push(`datagram ${bytes.length}`);
    return true;
  }
}
const lost = new MeshNodeError("ERR_STREAM_RESET", "given up");

describe("a stream of a session", () => {
  let owner: Owner;
  let stream: MeshStream;
  beforeEach(() => {
    owner = new Owner();
    stream = new MeshStream(0, "x", new Uint8Array(), owner);
  });

  it("gives up its own direction when the peer gave up the other", async () => {
    const failed = once(stream, "error");
    stream.onReset(lost);
    await failed;
    assert.deepEqual(owner.said, [`reset ${STREAM_CODES.failed}`]);
  });

  it("says nothing more when its session is gone", async () => {
    const failed = once(stream, "error");
    stream.onFailed(lost);
    await failed;
    assert.deepEqual(owner.said, []);
  });

  it("a write under way fails when the peer wants no more", async () => {
    owner.room = 3;
    const failed = once(stream, "error");
    stream.write("hello");
    stream.onStopped();
    assert.equal(((await failed) as [MeshNodeError])[0].code, "ERR_STREAM_RESET");
  });

  it("a peer that wants no more after the last byte takes nothing from what can be read", async () => {
    stream.end("all");
    await once(stream, "finish");
    stream.onStopped();
    assert.equal(stream.destroyed, false);
    stream.onFin();
    stream.resume();
    await once(stream, "close");
    assert.deepEqual(owner.said, ["end"]);
  });
});
