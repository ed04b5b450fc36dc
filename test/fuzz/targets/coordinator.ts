// The coordinator both ways: what nodes say to the whole core, what a coordinator says to nodes, and everything signed
// (statements, tickets, resume tokens), also with bodies that were changed before they were signed.
import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import type { IncomingMessage } from "node:http";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { WebSocket } from "ws";
import { CoordinatorClient } from "../../../coordinator/client.ts";
import { Coordinator, type NodeSubject } from "../../../coordinator/coordinator.ts";
import { verifyEd25519 } from "../../../coordinator/ed25519.ts";
import { CoordinatorError } from "../../../coordinator/errors.ts";
import { encodeResumeToken, openResumeToken } from "../../../coordinator/resume.ts";
import { firstMessages } from "../../../coordinator/server.ts";
import { Signer } from "../../../coordinator/signing.ts";
import { AGENT, alice, deps, keyOf, Peer, USER } from "../../../coordinator/testing.ts";
import { Admissions, DEFAULT_ADMISSION } from "../../../derp/server/admission.ts";
import { concatBytes, fromBase64, toBase64, utf8 } from "../../../mesh/wire/bytes.ts";
import { decodeCoordinatorMessage, decodeNodeMessage } from "../../../mesh/wire/coordinator.ts";
import { WireError } from "../../../mesh/wire/errors.ts";
import {
  encodeStatement,
  KEY_ID_BYTES,
  openStatement,
  SIGNATURE_BYTES,
  STATEMENT_KINDS,
  StatementError,
  type StatementKind,
} from "../../../mesh/wire/signed.ts";
import { type Instance, outcomeOf, type Target } from "../engine.ts";

const NOW = 1_000_000;
const GRANT = "9f7c6b2f-4a3e-4a55-8a3c-0d9f5f1f2a10";
const json = (value: unknown): Uint8Array => utf8(JSON.stringify(value));

// RFC 8032 section 7.1, test 1: a key whose signatures are the same in every run.
const SIGNING = {
  publicKey: Buffer.from("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "hex"),
  privateKey: Buffer.from("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "hex"),
};
const signer = new Signer([{ keyId: "0123456789abcdef", ...SIGNING }]);
const trust = { keys: signer.publicKeys, verify: verifyEd25519, nowMs: NOW };

const grantBody = {
  id: GRANT,
  nodeKey: keyOf(1),
  userId: USER,
  username: "alice",
  agentId: AGENT,
  permissions: ["*"],
  issuedAt: NOW - 5,
  expiresAt: NOW + 3_600_000,
};
const recordBody = {
  agentId: AGENT,
  nodeKey: keyOf(2),
  homeRegion: 999,
  issuedAt: NOW,
  expiresAt: NOW + 99_999,
};
const ticketBody = { nodeKey: keyOf(1), subject: `user:${USER}`, issuedAt: NOW, expiresAt: NOW + 99_999 };
const statements: [StatementKind, Uint8Array][] = [
  ["grant", encodeStatement("grant", grantBody, signer)],
  ["nodeRecord", encodeStatement("nodeRecord", recordBody, signer)],
  ["relayTicket", encodeStatement("relayTicket", ticketBody, signer)],
];
const kinds = Object.keys(STATEMENT_KINDS) as StatementKind[];

const nodeMessages = [
  { type: "hello", version: 1, nodeKey: keyOf(1), homeRegion: 999, liveGrants: [GRANT] },
  { type: "hello", version: 1, nodeKey: keyOf(2) },
  { type: "home", homeRegion: 3 },
  { type: "grant-request", request: 1, agentId: AGENT },
  { type: "grant-request", request: 2, workspace: "me/dev", agent: "main" },
  { type: "still-granted", request: 3, grants: [GRANT] },
  { type: "later", x: 1 },
].map(json);

const workspace = {
  id: GRANT,
  name: "dev",
  owner_name: "alice",
  outdated: false,
  latest_build: { id: GRANT, build_number: 1, transition: "start", status: "running" },
};
const agent = {
  id: AGENT,
  name: "main",
  status: "connected",
  lifecycle_state: "ready",
  startup_script_behavior: "non-blocking",
  connection_timeout_seconds: 120,
  troubleshooting_url: "",
  operating_system: "linux",
  directory: "",
  expanded_directory: "/home/x",
};
const welcome = {
  type: "welcome",
  version: 1,
  serverTimeMs: NOW,
  signingKeys: signer.publicKeys,
  resumeToken: "abc",
  relayTicket: toBase64(statements[2][1]),
  voidGrants: [GRANT],
  agentId: AGENT,
};
const coordinatorMessages = [
  welcome,
  { type: "relay-map", map: { Regions: { "999": { RegionID: 999, RegionCode: "x", Nodes: [] } } } },
  { type: "relay-ticket", ticket: toBase64(statements[2][1]), resumeToken: "def" },
  { type: "signing-keys", signingKeys: signer.publicKeys },
  {
    type: "grant",
    request: 1,
    grant: toBase64(statements[0][1]),
    record: toBase64(statements[1][1]),
    agentId: AGENT,
    workspace,
    agent,
  },
  { type: "record", agentId: AGENT, record: toBase64(statements[1][1]) },
  { type: "record-gone", agentId: AGENT },
  { type: "revoke", grants: [GRANT] },
  { type: "void-grants", request: 1, grants: [GRANT] },
  { type: "error", request: 1, code: "ERR_NOT_FOUND", message: "no such agent" },
].map(json);

/** A whole coordinator with nodes of a user and of an agent; each message comes from one of them. */
function coordinatorInstance(): Instance {
  let unexpected: unknown;
  const coordinator = new Coordinator(
    deps({
      signer,
      onError: (error) => {
        unexpected ??= error;
      },
    }),
  );
  const subjects: NodeSubject[] = [alice, { kind: "agent", agentId: AGENT }];
  const peers: (Peer | undefined)[] = [];
  return {
    async run(input, random) {
      const which = random.below(2);
      let peer = peers[which];
      if (!peer || peer.closed) {
        peer = new Peer(coordinator, subjects[which]);
        peers[which] = peer;
        if (random.chance(0.7)) await peer.hello(which + 1, 999);
      }
      const before = peer.said.length;
      await coordinator.receive(peer.link, input);
      if (unexpected) throw unexpected;
      assert.ok(coordinator.connections <= 2, "connections pile up");
      assert.ok(peer.said.length - before <= 6, "an answer of many");
      const said = peer.said.splice(0);
      for (const message of said) {
        const read = decodeCoordinatorMessage(JSON.stringify(message));
        assert.ok(read, `it said what nobody understands: ${message.type}`);
      }
      return `${peer.closed} ${said.map(({ type, ...rest }) => ("code" in rest ? rest.code : type)).join()}`;
    },
  };
}

/** What the client needs of a WebSocket: a socket whose other end is the fuzzer. */
class FedSocket extends EventEmitter {
  readyState = 1;
  sent = 0;
  send(): void {
    this.sent++;
  }
  terminate(): void {
    this.close(1006);
  }
  ping(): void {}
  close(code = 1000): void {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.emit("close", code, Buffer.alloc(0));
  }
}

async function clientInstance(): Promise<Instance> {
  const sockets: FedSocket[] = [];
  const client = new CoordinatorClient({
    url: "http://coordinator",
    token: "t",
    nodeKey: keyOf(1),
    openSocket: () => {
      const socket = new FedSocket();
      sockets.push(socket);
      return socket as unknown as WebSocket;
    },
  });
  client.connect().catch(() => undefined);
  while (sockets.length === 0) await nextTurn();
  const socket = sockets[0];
  let told = 0;
  client.onRecord = (record) => {
    assert.equal(record.agentId, AGENT, "a record nobody signed");
    told++;
  };
  client.onRevoke = () => told++;
  return {
    get isSpent() {
      return socket.readyState === 3;
    },
    async run(input) {
      if (!socket.listenerCount("message")) return "not open";
      if (socket.sent === 0) socket.emit("open");
      const failures: unknown[] = [];
      const asked = [client.requestGrant(AGENT), client.voidGrants([GRANT])];
      const settled = Promise.allSettled(asked).then((all) => {
        for (const one of all) if (one.status === "rejected") failures.push(one.reason);
      });
      const before = told;
      socket.emit("message", Buffer.from(input), false);
      const state = `${socket.readyState} ${told - before} ${client.connected}`;
      // Whatever was left open ends with the connection; errors are of the kind that says what to do.
      client.close();
      await settled;
      for (const failure of failures)
        if (
          !(
            failure instanceof CoordinatorError ||
            failure instanceof WireError ||
            failure instanceof StatementError
          )
        )
          throw failure;
      if (socket.readyState !== 3) socket.close();
      return `${state} ${failures.map((failure) => (failure as CoordinatorError).code.slice(0, 40)).join()}`;
    },
    end: () => client.close(),
  };
}

const STATEMENT_CONTEXT = utf8("workspace-mesh statement v1\0");
const signedPart = (statement: Uint8Array): Uint8Array =>
  concatBytes(STATEMENT_CONTEXT, statement.subarray(0, 10), statement.subarray(74));
const isSigned = (statement: Uint8Array): boolean =>
  verifyEd25519(SIGNING.publicKey, signedPart(statement), statement.subarray(10, 74));

/** Signs what stands behind the signature, so that a changed body is reached. */
function resigned(statement: Uint8Array): Uint8Array {
  if (statement.length < 74) return statement;
  const out = statement.slice();
  out.set(signer.id, 2);
  out.set(signer.sign(signedPart(out)), 10);
  return out;
}

const TOKEN_CONTEXT = utf8("workspace-mesh resume token v1\0");
const tokenBody = {
  subject: alice as never,
  nodeKey: keyOf(1),
  credential: "c",
  linkId: GRANT,
  expiresAt: NOW + 1_000,
};

function tokenOf(body: Uint8Array): string {
  const signature = signer.sign(concatBytes(TOKEN_CONTEXT, body));
  return Buffer.from(concatBytes(signer.id, signature, body)).toString("base64url");
}

const admissionKey = fromBase64(keyOf(1));
const base64 = (bytes: Uint8Array): Uint8Array => utf8(toBase64(bytes));

export const coordinatorTargets: Target[] = [
  {
    name: "coordinator-messages",
    format: "json",
    seeds: [...nodeMessages, ...coordinatorMessages],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const node = outcomeOf(() => {
          const message = decodeNodeMessage(input);
          if (message) assert.deepEqual(decodeNodeMessage(JSON.stringify(message)), message);
          return message?.type;
        }, WireError);
        const other = outcomeOf(() => {
          const message = decodeCoordinatorMessage(input);
          if (message) assert.deepEqual(decodeCoordinatorMessage(JSON.stringify(message)), message);
          return message?.type;
        }, WireError);
        return `${node} ${other}`;
      },
    }),
  },
  {
    name: "coordinator-core",
    format: "json",
    seeds: nodeMessages,
    inputsPerInstance: 300,
    shortInputs: 600,
    open: coordinatorInstance,
  },
  {
    name: "coordinator-client",
    format: "json",
    seeds: coordinatorMessages,
    shortInputs: 600,
    open: clientInstance,
  },
  {
    name: "coordinator-first",
    format: "text",
    seeds: [base64(json([{ type: "hello", version: 1, nodeKey: keyOf(1) }])), base64(json([1, { a: [[]] }]))],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const header = Buffer.from(input).toString("latin1");
        const found = firstMessages({
          headers: { "coder-mesh-first": header },
        } as unknown as IncomingMessage);
        for (const text of found ?? []) outcomeOf(() => decodeNodeMessage(text)?.type, WireError);
        return String(found?.length);
      },
    }),
  },
  {
    name: "signed-statements",
    format: "bytes",
    seeds: statements.map(([, statement]) => statement),
    dictionary: ["expiresAt", '"*"', ",", "null", "{}", "1e999"].map(utf8),
    repair: (input) => resigned(input),
    shortInputs: 800,
    inputsPerInstance: 1_000,
    open: () => ({
      run: (input) =>
        kinds
          .map((kind) =>
            outcomeOf(() => {
              const body = openStatement(kind, input, trust);
              assert.ok(isSigned(input), "believed without a signature");
              assert.ok(body.expiresAt > NOW && body.issuedAt <= NOW + 60_000);
              const again = openStatement(kind, encodeStatement(kind, body, signer), trust);
              assert.deepEqual(again, body);
              return kind;
            }, StatementError),
          )
          .join(" "),
    }),
  },
  {
    name: "signed-keys",
    format: "bytes",
    // What a lying coordinator may hand out as its key.
    seeds: [Uint8Array.from(SIGNING.publicKey), new Uint8Array(32), new Uint8Array(32).fill(255)],
    maxBytes: 64,
    inputsPerInstance: 1_000,
    open: () => ({
      run: (input) =>
        outcomeOf(() => {
          const keys = [{ id: "0123456789abcdef", publicKey: toBase64(input.subarray(0, 32)) }];
          if (input.length < 32) return "short";
          return openStatement("grant", statements[0][1], { ...trust, keys }).username;
        }, StatementError),
    }),
  },
  {
    name: "resume-tokens",
    format: "json",
    seeds: [json(tokenBody), utf8(encodeResumeToken(tokenBody, signer))],
    shortInputs: 800,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input, random) {
        const options = { keys: signer.publicKeys, credential: "c", nowMs: NOW };
        const text = random.chance(0.7) ? tokenOf(input) : Buffer.from(input).toString("latin1");
        const opened = openResumeToken(text, options);
        if (!opened) return "refused";
        assert.ok(opened.credential === "c" && opened.expiresAt > NOW);
        const bytes = Buffer.from(text, "base64url");
        assert.ok(bytes.length > KEY_ID_BYTES + SIGNATURE_BYTES);
        return opened.subject.kind;
      },
    }),
  },
  {
    name: "relay-tickets",
    format: "text",
    seeds: [
      base64(statements[2][1]),
      utf8(Buffer.from(statements[2][1]).toString("base64url")),
      base64(statements[0][1]),
      utf8("="),
    ],
    // Headers of a request are that long.
    maxBytes: 16_384,
    dictionary: [utf8("=".repeat(4_000)), utf8(" ".repeat(4_000)), utf8("-_+/")],
    inputsPerInstance: 1_000,
    open: () => {
      const admissions = new Admissions(
        "ticket",
        { keys: () => signer.publicKeys, verify: verifyEd25519 },
        DEFAULT_ADMISSION,
      );
      return {
        run(input) {
          const ticket = Buffer.from(input).toString("latin1");
          const verdict = admissions.admit({ key: admissionKey, ticket, address: "192.0.2.1" }, NOW, 0);
          if (!verdict.ok) return verdict.why.replaceAll(/[0-9a-f]{16}|\d+/g, "#");
          assert.equal(verdict.subject?.name, `user:${USER}`);
          admissions.release(verdict.subject, 0);
          return "in";
        },
      };
    },
  },
];
