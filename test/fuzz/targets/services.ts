// What travels on streams: session headers and messages, forwards, SFTP (the codec, and a whole server on an empty folder
// whose requests never touch a file system), X11 setups and what an SSH client asks of a terminal.
import assert from "node:assert/strict";
import { xauthority } from "../../../agent/sessions/x11.ts";
import { parseGroups, parsePasswd } from "../../../agent/sftp/accounts.ts";
import { PathError } from "../../../agent/sftp/errors.ts";
import { mountFlags } from "../../../agent/sftp/mounts.ts";
import { absolutePath } from "../../../agent/sftp/paths.ts";
import { INIT, packet, string, u32, u64 } from "../../../agent/sftp/testing.ts";
import { decodePacket as decodeSftp, PacketDecoder } from "../../../agent/sftp/wire.ts";
import { COOKIE_PROTOCOL, CookieReplacer, parseXauthList } from "../../../client/forward/x11.ts";
import { decodePtyRequest, decodeTerminalModes } from "../../../client/ssh-server/modes.ts";
import { fromUtf8, utf8 } from "../../../mesh/wire/bytes.ts";
import {
  ChannelDecoder,
  type ChannelMessage,
  decodeHeader,
  encodeHeader,
  encodeMessage,
} from "../../../mesh/wire/channel.ts";
import { WireError } from "../../../mesh/wire/errors.ts";
import {
  AnswerDecoder,
  CallbackMetadata,
  decodeMetadata,
  encodeAnswer,
  hostPortService,
  ListenMetadata,
  parseHostPort,
  SessionSummary,
  SessionsMetadata,
  SpeedtestMetadata,
} from "../../../mesh/wire/forward.ts";
import channel from "../../vectors/channel.json" with { type: "json" };
import forward from "../../vectors/forward.json" with { type: "json" };
import { outcomeOf, type Target } from "../engine.ts";
import { pieces } from "../random.ts";

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(" ", ""), "hex"));
const json = (value: unknown): Uint8Array => utf8(typeof value === "string" ? value : JSON.stringify(value));

/** DATA joined, other messages as JSON; then how it ended. */
function messagesOf(chunks: readonly Uint8Array[]): string[] {
  const decoder = new ChannelDecoder();
  const seen: string[] = [];
  let joined = "";
  const flush = (kind: string): void => {
    if (joined !== "" && !joined.startsWith(kind)) {
      seen.push(joined);
      joined = "";
    }
  };
  const note = (message: ChannelMessage): void => {
    if (message.kind !== "data" && message.kind !== "stderr") {
      flush("-");
      seen.push(JSON.stringify(message));
      const [again] = new ChannelDecoder().push(encodeMessage(message));
      const { message: text, ...rest } = message as { message?: string };
      // Text for people is clipped on the way out.
      if (text === undefined || text.length <= 1_000) assert.deepEqual(again, message);
      else assert.ok(again && Object.keys(rest).length > 0);
      return;
    }
    flush(message.kind);
    if (joined === "") joined = message.kind;
    joined += Buffer.from(message.bytes).toString("latin1");
  };
  const code = outcomeOf(() => {
    for (const chunk of chunks) for (const message of decoder.push(chunk)) note(message);
    return undefined;
  }, WireError);
  // What comes before a broken message is handed out or not, as it was cut.
  if (code !== "ok") return [code];
  flush("-");
  return [...seen, code];
}

const wordOf = (text: string): string => /^\{"kind":"(\w+)"/.exec(text)?.[1] ?? text.slice(0, 6);

function answersOf(chunks: readonly Uint8Array[]): string {
  const decoder = new AnswerDecoder();
  return outcomeOf(() => {
    for (const [i, chunk] of chunks.entries()) {
      const answer = decoder.push(chunk);
      if (!answer) continue;
      const rest = Buffer.concat([answer.rest, ...chunks.slice(i + 1)]).toString("latin1");
      const [again] = [new AnswerDecoder().push(encodeAnswer(answer.status, answer.text))];
      assert.equal(again?.text, answer.text);
      return `${answer.status} ${answer.text} ${rest}`;
    }
    return "more";
  }, WireError);
}

const metadataShapes = {
  ListenMetadata,
  CallbackMetadata,
  SpeedtestMetadata,
  SessionsMetadata,
  SessionSummary,
};

const attributes = [u32(4 | 8), u32(0o644), u32(1), u32(2)];
const sftpPackets = [
  INIT,
  packet(3, u32(1), string("a"), u32(2 | 8), ...attributes),
  packet(4, u32(2), string(u32(0))),
  packet(5, u32(3), string(u32(0)), u64(0), u32(100)),
  packet(6, u32(4), string(u32(0)), u64(0), string("data")),
  packet(9, u32(5), string("a"), u32(0x8000_0001), u64(5), u32(1), string("x@y"), string("z")),
  packet(11, u32(6), string("/")),
  packet(18, u32(7), string("a"), string("b")),
  packet(20, u32(8), string("t"), string("l")),
  packet(200, u32(9), string("copy-data"), string(u32(0)), u64(0), u64(0), string(u32(1)), u64(0)),
  packet(
    200,
    u32(10),
    string("users-groups-by-id@openssh.com"),
    string(Buffer.concat([u32(0), u32(1)])),
    string(u32(0)),
  ),
  packet(200, u32(11), string("home-directory"), string("root")),
].map((bytes) => Uint8Array.from(bytes));

/** The length right again, as far as there are bytes. */
function repairSftp(input: Uint8Array): Uint8Array {
  const out = input.slice();
  if (out.length > 4) new DataView(out.buffer).setUint32(0, out.length - 4);
  return out;
}

function sftpOf(chunks: readonly Uint8Array[]): string[] {
  const decoder = new PacketDecoder();
  const seen: string[] = [];
  const code = outcomeOf(() => {
    for (const chunk of chunks) {
      decoder.push(chunk);
      for (let packet = decoder.take(); packet; packet = decoder.take()) {
        const request = decodeSftp(packet);
        seen.push(
          JSON.stringify(request, (_, value) => (Buffer.isBuffer(value) ? value.toString("hex") : value)),
        );
      }
    }
    return undefined;
  }, WireError);
  return [...seen, code];
}

const FAKE = new Uint8Array(16).fill(1);
const REAL = new Uint8Array(16).fill(2);

function x11Setup(order: number, name: string, data: Uint8Array): Uint8Array {
  const out = Buffer.alloc(12 + ((name.length + 3) & ~3) + ((data.length + 3) & ~3));
  out[0] = order;
  const u16 = (at: number, value: number) =>
    order === 0x42 ? out.writeUInt16BE(value, at) : out.writeUInt16LE(value, at);
  u16(2, 11);
  u16(6, name.length);
  u16(8, data.length);
  out.write(name, 12, "latin1");
  out.set(data, 12 + ((name.length + 3) & ~3));
  return Uint8Array.from(out);
}

function x11Of(chunks: readonly Uint8Array[]): string {
  const replacer = new CookieReplacer(FAKE, REAL);
  for (const [i, chunk] of chunks.entries()) {
    const swap = replacer.push(chunk);
    if (swap.kind === "refused") return `refused ${swap.why}`;
    if (swap.kind === "done")
      return `done ${Buffer.concat([swap.bytes, ...chunks.slice(i + 1)]).toString("hex")}`;
  }
  return "more";
}

const ptyRequest = Buffer.concat([
  Buffer.from([98]),
  u32(0),
  string("pty-req"),
  Buffer.from([1]),
  string("xterm"),
  u32(80),
  u32(24),
  u32(0),
  u32(0),
  string(Buffer.from([1, 0, 0, 0, 3, 53, 0, 0, 0, 1, 0])),
]);

export const serviceTargets: Target[] = [
  {
    name: "channel-headers",
    format: "json",
    seeds: [...channel.headers, ...channel.refusedHeaders].map((vector) => json(vector.json)),
    maxBytes: 20_000,
    inputsPerInstance: 1_000,
    open: () => ({
      run: (input) =>
        outcomeOf(() => {
          const header = decodeHeader(input);
          // An agent hands these to the kernel, whose strings end at NUL.
          assert.ok(!Object.values(header.env).some((value) => value.includes("\0")));
          if (JSON.stringify({ v: 1, ...header }).length < 16_000)
            assert.deepEqual(decodeHeader(encodeHeader(header)), header);
          return `${header.kind} ${header.pty !== undefined} ${header.x11 !== undefined}`;
        }, WireError),
    }),
  },
  {
    name: "channel-messages",
    format: "bytes",
    seeds: [...channel.messages, ...channel.tolerated, ...channel.refused].map(({ wire }) => hex(wire)),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input, random) {
        const whole = messagesOf([input]);
        if (random.chance(0.4)) assert.equal(messagesOf(pieces(input, random)).join("\n"), whole.join("\n"));
        return whole.slice(0, 3).map(wordOf).join(" ");
      },
    }),
  },
  {
    name: "forward-answers",
    format: "bytes",
    seeds: [
      ...forward.answers.map(({ wire }) => hex(wire)),
      encodeAnswer(0, '{"port":4000}'),
      encodeAnswer(2, "x".repeat(300)),
    ],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input, random) {
        const whole = answersOf([input]);
        assert.equal(answersOf(pieces(input, random)), whole);
        return whole.split(" ")[0];
      },
    }),
  },
  {
    name: "forward-metadata",
    format: "json",
    seeds: [
      ...forward.metadata.map((vector) => json(vector.json)),
      json({
        id: "a",
        startedAt: 1,
        lastHeardAt: 2,
        isCurrent: true,
        resumeWindowMs: 3,
        path: "relay",
        streams: [{ service: "session", what: "shell", openedAt: 4 }],
      }),
    ],
    inputsPerInstance: 1_000,
    open: () => ({
      run: (input) =>
        Object.values(metadataShapes)
          .map((shape) =>
            outcomeOf(() => {
              const metadata = decodeMetadata(shape, input);
              assert.deepEqual(decodeMetadata(shape, json(metadata)), metadata);
              return undefined;
            }, WireError),
          )
          .join(),
    }),
  },
  {
    name: "forward-targets",
    format: "text",
    seeds: forward.targets.map(({ service }) => utf8(service)),
    dictionary: ["tcp:", "udp:", "unix:", "[", "]", ":", "65535", "%eth0"].map(utf8),
    maxBytes: 600,
    inputsPerInstance: 1_000,
    open: () => ({
      run: (input) =>
        outcomeOf(() => {
          const target = parseHostPort(fromUtf8(input));
          if (!target) return "none";
          const { protocol, host, port } = target;
          assert.ok(port >= 1 && port <= 65_535 && !/[\s\0/[\]]/.test(host), host);
          assert.deepEqual(parseHostPort(hostPortService(protocol, host, port)), target);
          return protocol;
        }, WireError),
    }),
  },
  {
    name: "sftp-packets",
    format: "bytes",
    seeds: [...sftpPackets, Uint8Array.from(Buffer.concat(sftpPackets))],
    repair: repairSftp,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input, random) {
        const whole = sftpOf([input]);
        if (random.chance(0.4)) assert.equal(sftpOf(pieces(input, random)).join("\n"), whole.join("\n"));
        return whole.slice(0, 2).map(wordOf).join(" ");
      },
    }),
  },
  {
    name: "sftp-paths",
    format: "bytes",
    seeds: ["/a/b", "../x", "~/y", "", ".", "/".repeat(50)].map(utf8),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        return outcomeOf(() => {
          const found = absolutePath(Buffer.from("/home/dev"), Buffer.from(input));
          assert.equal(found[0], 0x2f);
          return String(found.length > 4_096);
        }, PathError);
      },
    }),
  },
  {
    name: "accounts-and-mounts",
    format: "text",
    seeds: [
      utf8("root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1000::/home/dev:\n"),
      utf8("wheel:x:10:dev,root\n"),
      utf8("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"),
    ],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const text = new TextDecoder().decode(input);
        return `${parsePasswd(text).length} ${parseGroups(text).size} ${mountFlags(text, 98 * 256)}`;
      },
    }),
  },
  {
    name: "x11-setup",
    format: "bytes",
    seeds: [
      x11Setup(0x6c, COOKIE_PROTOCOL, FAKE),
      x11Setup(0x42, COOKIE_PROTOCOL, FAKE),
      x11Setup(0x42, "", new Uint8Array()),
      utf8(`host/unix:0  ${COOKIE_PROTOCOL}  ${"0a".repeat(16)}\n`),
    ],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input, random) {
        const whole = x11Of([input]);
        if (whole.startsWith("done"))
          assert.ok(
            Buffer.from(input).includes(Buffer.from(FAKE)),
            "a connection without the cookie came through",
          );
        assert.equal(x11Of(pieces(input, random)), whole);
        const cookie = parseXauthList(Buffer.from(input).toString("latin1"));
        if (cookie !== undefined) xauthority(10, COOKIE_PROTOCOL, cookie, "host");
        return whole.slice(0, 30).replace(/^done.*/, "done");
      },
    }),
  },
  {
    name: "terminal-requests",
    format: "bytes",
    seeds: [Uint8Array.from(ptyRequest), Uint8Array.from(ptyRequest.subarray(-11))],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const modes = decodeTerminalModes(input);
        const request = decodePtyRequest(Buffer.from(input));
        assert.ok(Object.values(modes).every((value) => value >= 0 && value < 2 ** 32));
        return `${Object.keys(modes).length} ${request !== undefined}`;
      },
    }),
  },
];
