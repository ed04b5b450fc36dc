import assert from "node:assert/strict";
import fc from "fast-check";
import vectors from "../../test/vectors/channel.json" with { type: "json" };
import { concatBytes, fromHex, toHex, utf8 } from "./bytes.ts";
import {
  ChannelDecoder,
  type ChannelMessage,
  dataPrefix,
  decodeHeader,
  encodeHeader,
  encodeMessage,
  encodeOpening,
  HeaderError,
  MAX_COMMAND_BYTES,
  MAX_DATA_BYTES,
  MAX_ENV_ENTRIES,
  MAX_HEADER_BYTES,
  type SessionHeader,
} from "./channel.ts";
import { WireError } from "./errors.ts";

const hex = (text: string) => fromHex(text.replaceAll(" ", ""));

/** The vectors write bytes as hex. */
function printable(message: ChannelMessage): Record<string, unknown> {
  return "bytes" in message ? { ...message, bytes: toHex(message.bytes) } : { ...message };
}

function fromVector(message: Record<string, unknown>): ChannelMessage {
  const { bytes } = message;
  return (typeof bytes === "string" ? { ...message, bytes: fromHex(bytes) } : message) as ChannelMessage;
}

/** Joins the pieces a long DATA or STDERR comes in. */
function joined(messages: ChannelMessage[]): ChannelMessage[] {
  const out: ChannelMessage[] = [];
  for (const message of messages) {
    const last = out.at(-1);
    if (last && "bytes" in last && "bytes" in message && last.kind === message.kind)
      out[out.length - 1] = { kind: last.kind, bytes: concatBytes(last.bytes, message.bytes) };
    else out.push(message);
  }
  return out;
}

function decodeAll(wire: Uint8Array, size = wire.length): ChannelMessage[] {
  const decoder = new ChannelDecoder();
  const got: ChannelMessage[] = [];
  for (let i = 0; i < wire.length; i += size) got.push(...decoder.push(wire.subarray(i, i + size)));
  decoder.end();
  return got;
}

const u16 = fc.nat(65_535);
const signal = fc.constantFrom("HUP", "INT", "TERM", "USR1", "INFO@openssh.com");
const userText = fc.string({ unit: "grapheme", maxLength: 60 });
const anyMessage: fc.Arbitrary<ChannelMessage> = fc.oneof(
  fc.record({
    kind: fc.constantFrom("data" as const, "stderr" as const),
    bytes: fc.uint8Array({ minLength: 1, maxLength: 300 }),
  }),
  fc.record({
    kind: fc.constant("windowChange" as const),
    cols: fc.integer({ min: 1, max: 65_535 }),
    rows: fc.integer({ min: 1, max: 65_535 }),
    widthPx: u16,
    heightPx: u16,
  }),
  fc.record({ kind: fc.constantFrom("eof" as const, "openOk" as const) }),
  fc.record({ kind: fc.constant("command" as const), command: userText.filter((t) => !t.includes("\0")) }),
  fc.record({ kind: fc.constant("signal" as const), name: signal }),
  fc.record({ kind: fc.constant("break" as const), lengthMs: fc.maxSafeNat() }),
  fc.record({ kind: fc.constant("openFailed" as const), reason: fc.nat(300), message: userText }),
  fc.record({ kind: fc.constant("exitStatus" as const), status: fc.nat(0xffffffff) }),
  fc.record({
    kind: fc.constant("exitSignal" as const),
    name: signal,
    coreDumped: fc.boolean(),
    message: userText,
  }),
);

describe("session channel messages", () => {
  for (const { name, wire, message } of vectors.messages) {
    it(`${name} encodes to the published bytes`, () =>
      assert.equal(toHex(encodeMessage(fromVector(message))), toHex(hex(wire))));
    it(`${name} decodes from the published bytes`, () =>
      assert.deepEqual(decodeAll(hex(wire)).map(printable), [message]));
  }

  for (const { name, wire, messages } of vectors.tolerated)
    it(name, () => assert.deepEqual(decodeAll(hex(wire)).map(printable), messages));

  for (const { name, wire, code } of vectors.refused)
    it(`refuses ${name}`, () => assert.throws(() => decodeAll(hex(wire)), { name: "WireError", code }));

  it("yields the same messages however the stream is cut", () => {
    fc.assert(
      fc.property(fc.array(anyMessage), fc.integer({ min: 1, max: 64 }), (messages, size) => {
        const wire = concatBytes(...messages.map(encodeMessage));
        assert.deepEqual(joined(decodeAll(wire, size)), joined(messages.map((message) => ({ ...message }))));
      }),
    );
  });

  it("answers damaged bytes with WireError or with messages, never otherwise", () => {
    const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 8 });
    fc.assert(
      fc.property(fc.array(anyMessage, { minLength: 1 }), damage, fc.nat(), (messages, edits, cut) => {
        const wire = concatBytes(...messages.map(encodeMessage));
        for (const [at, value] of edits) wire[at % wire.length] = value;
        try {
          decodeAll(wire.subarray(0, wire.length - (cut % wire.length)), 7);
        } catch (error) {
          assert.ok(error instanceof WireError, String(error));
        }
      }),
    );
  });

  it("hands DATA on as it arrives, in views of the chunk", () => {
    const decoder = new ChannelDecoder();
    assert.deepEqual(decoder.push(dataPrefix("data", MAX_DATA_BYTES)), []);
    const chunk = new Uint8Array(65_536).fill(7);
    const [message] = decoder.push(chunk);
    assert.ok(message.kind === "data");
    assert.equal(message.bytes.buffer, chunk.buffer);
    assert.equal(message.bytes.length, chunk.length);
  });

  it("a prefix and its payload are the message", () => {
    for (const length of [1, 63, 64, 16_383, 16_384, 65_536]) {
      const bytes = new Uint8Array(length).fill(1);
      assert.deepEqual(
        concatBytes(dataPrefix("stderr", length), bytes),
        encodeMessage({ kind: "stderr", bytes }),
      );
    }
    assert.throws(() => dataPrefix("data", MAX_DATA_BYTES + 1), { code: "ERR_FRAME_TOO_LARGE" });
  });

  it("a stream cut inside a message is told from one that ended", () => {
    const decoder = new ChannelDecoder();
    decoder.push(hex("01 05 6162"));
    assert.throws(() => decoder.end(), { code: "ERR_FRAME_TRUNCATED" });
  });

  it("shortens a long text for the user instead of failing", () => {
    const message = "\u{1f980}".repeat(5_000);
    const [got] = decodeAll(encodeMessage({ kind: "openFailed", reason: 7, message }));
    assert.ok(got.kind === "openFailed" && got.message.endsWith("\u{1f980}…"), got.kind);
  });
});

describe("session header", () => {
  for (const { name, json, header } of vectors.headers)
    it(`reads ${name}`, () => assert.deepEqual(decodeHeader(utf8(json)), header));

  for (const { name, json, reason } of vectors.refusedHeaders)
    it(`refuses ${name}`, () =>
      assert.throws(
        () => decodeHeader(utf8(json)),
        (error) => error instanceof HeaderError && error.reason === reason,
      ));

  it("refuses bytes that are not UTF-8", () =>
    assert.throws(() => decodeHeader(Uint8Array.of(0x22, 0xff, 0x22)), HeaderError));

  it("refuses more than the limits allow", () => {
    const env = Object.fromEntries(Array.from({ length: MAX_ENV_ENTRIES + 1 }, (_, i) => [`A${i}`, ""]));
    assert.throws(() => encodeHeader({ kind: "shell", env }), HeaderError);
    assert.throws(() => decodeHeader(utf8(" ".repeat(MAX_HEADER_BYTES + 1))), HeaderError);
    assert.throws(() => decodeHeader(utf8("[".repeat(MAX_HEADER_BYTES))), HeaderError);
  });

  it("reads back what it wrote", () => {
    const headers: SessionHeader[] = [
      { kind: "shell", env: { A: "b", LC_ALL: "ä" } },
      { kind: "exec", command: "printf '%s' \"$A\"", env: {} },
      { kind: "subsystem", subsystem: "sftp", env: {} },
      {
        kind: "shell",
        env: {},
        pty: { term: "xterm", cols: 1, rows: 2, widthPx: 3, heightPx: 4, modes: { ECHO: 1 } },
      },
    ];
    for (const header of headers) assert.deepEqual(decodeHeader(encodeHeader(header)), header);
  });

  it("sends a long command as the first message", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 3 * 8_192 }), fc.constantFrom("a", '"', "é"), (length, char) => {
        const header: SessionHeader = { kind: "exec", command: char.repeat(length), env: { A: "b" } };
        const { metadata, first } = encodeOpening(header);
        const decoded = decodeHeader(metadata);
        assert.ok(decoded.kind === "exec");
        const [message] = first.length > 0 ? decodeAll(first) : [];
        const command = message?.kind === "command" ? message.command : undefined;
        assert.equal(decoded.command ?? command, header.command);
        assert.ok((decoded.command === undefined) !== (command === undefined));
      }),
    );
    const command = "x".repeat(MAX_COMMAND_BYTES + 1);
    assert.throws(() => encodeOpening({ kind: "exec", command, env: {} }), { code: "ERR_FRAME_TOO_LARGE" });
  });

  it("a name of an object's own machinery is an ordinary variable", () => {
    const header = decodeHeader(utf8('{"v":1,"kind":"shell","env":{"__proto__":"x"}}'));
    assert.deepEqual(Object.entries(header.env), [["__proto__", "x"]]);
    assert.equal(Object.getPrototypeOf(header.env), Object.prototype);
  });
});
