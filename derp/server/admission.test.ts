import assert from "node:assert/strict";
import { generateKeyPairSync, sign, verify as verifySignature } from "node:crypto";
import { once } from "node:events";
import { createWebSocketStream, WebSocket } from "ws";
import { toBase64, toHex, utf8 } from "../../mesh/wire/bytes.ts";
import { encodeFrame } from "../../mesh/wire/derp.ts";
import { encodeStatement, type RelayTicket } from "../../mesh/wire/signed.ts";
import { keyPair, sealClientInfo, sharedKey } from "../box.ts";
import { DerpClient } from "../client/client.ts";
import { earlyDial } from "../client/early.ts";
import { rawJoin, startRelay, type TestRelay, until } from "../testing.ts";
import { type AdmissionMode, Admissions, DEFAULT_ADMISSION, MAX_TICKET_LIFETIME_MS } from "./admission.ts";
import type { DerpServerOptions } from "./server.ts";

const keys = generateKeyPairSync("ed25519");
const otherKeys = generateKeyPairSync("ed25519");
const raw = (key = keys): Uint8Array =>
  new Uint8Array(key.publicKey.export({ type: "spki", format: "der" }).subarray(-32));
const ID = new Uint8Array(8).fill(5);
const checks = {
  keys: () => [{ id: toHex(ID), publicKey: toBase64(raw()) }],
  verify: (_publicKey: Uint8Array, message: Uint8Array, signature: Uint8Array) =>
    verifySignature(null, message, keys.publicKey, signature),
};
const NOW = 1_800_000_000_000;
const USER = "user:11111111-1111-4111-8111-111111111111";
const AGENT = "agent:22222222-2222-4222-8222-222222222222";

function ticketFor(nodeKey: Uint8Array, change: Partial<RelayTicket> = {}, by = keys): string {
  const body = {
    nodeKey: toBase64(nodeKey),
    subject: USER,
    issuedAt: NOW - 1_000,
    expiresAt: NOW + 3_600_000,
    ...change,
  };
  return toBase64(
    encodeStatement("relayTicket", body, { id: ID, sign: (message) => sign(null, message, by.privateKey) }),
  );
}

describe("relay admission", () => {
  const key = new Uint8Array(32).fill(1);
  let admissions: Admissions;
  const make = (mode: AdmissionMode = "open", limits = {}): void => {
    admissions = new Admissions(mode, checks, { ...DEFAULT_ADMISSION, ...limits });
  };
  /** The subject that pays, or why not. */
  const admit = (ticket: string | undefined, { of = key, nowMs = NOW, now = 0 } = {}): string => {
    const verdict = admissions.admit({ key: of, ticket, address: "192.0.2.1" }, nowMs, now);
    return verdict.ok ? (verdict.subject?.name ?? "nobody") : `no: ${verdict.why}`;
  };
  beforeEach(() => make());

  it("a ticket for the proven key puts a connection at its subject's expense", () => {
    assert.equal(admit(ticketFor(key)), USER);
    assert.equal(admit(ticketFor(key, { subject: AGENT })), AGENT);
  });

  it("takes a ticket in the URL alphabet, without padding, and with spaces for its plus signs", () => {
    const ticket = ticketFor(key);
    for (const written of [
      ticket.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, ""),
      ticket.replaceAll("+", " "),
    ])
      assert.equal(admit(written), USER);
  });

  for (const [what, ticket] of [
    ["none", undefined],
    ["one for another key", ticketFor(new Uint8Array(32).fill(2))],
    ["an expired one", ticketFor(key, { expiresAt: NOW })],
    ["one from the future", ticketFor(key, { issuedAt: NOW + 120_000 })],
    ["one that lives too long", ticketFor(key, { expiresAt: NOW + MAX_TICKET_LIFETIME_MS + 1 })],
    ["one signed by somebody else", ticketFor(key, {}, otherKeys)],
    ["a cut one", ticketFor(key).slice(0, 100)],
    ["no base64", "%%%"],
    ["padding as long as a header may be, and then something else", `${"=".repeat(200_000)}x`], // at once
    ["an empty one", ""],
  ] as const)
    it(`with ${what} a key is at its address's expense, or not admitted where tickets are required`, () => {
      assert.equal(admit(ticket), "address:192.0.2.1");
      make("ticket");
      assert.match(admit(ticket), /^no: /);
      assert.equal(admit(ticketFor(key)), USER);
    });

  it("tickets can't be required where they can't be checked, and without checks nobody is limited", () => {
    assert.throws(() => new Admissions("ticket", undefined, DEFAULT_ADMISSION), TypeError);
    admissions = new Admissions("open", undefined, { ...DEFAULT_ADMISSION, anonymousPerAddress: 1 });
    for (let i = 0; i < 5; i++) assert.equal(admit(ticketFor(key)), "nobody");
  });

  it("a subject, and an address without tickets, has a share of connections, which ended ones give back", () => {
    make("open", { connectionsPerSubject: 2, anonymousPerAddress: 1 });
    const ticket = ticketFor(key);
    assert.deepEqual([admit(ticket), admit(ticket)], [USER, USER]);
    assert.match(admit(ticket), /^no: .* has 2 connections/);
    assert.equal(admit(ticketFor(key, { subject: AGENT })), AGENT);
    const verdict = admissions.admit({ key, ticket: undefined, address: "192.0.2.1" }, NOW, 0);
    assert.ok(verdict.ok && verdict.subject);
    assert.match(admit(undefined), /^no: /);
    admissions.release(verdict.subject, 0);
    assert.equal(admit(undefined), "address:192.0.2.1");
  });

  it("however many come without a ticket, from however many addresses, those with one find room", () => {
    make("open", { anonymousTotal: 3 });
    const enter = (address: string, limited = admissions) =>
      limited.admit({ key, ticket: undefined, address }, NOW, 0);
    const [first] = [enter("192.0.2.2"), enter("192.0.2.3"), enter("192.0.2.4")];
    assert.equal(enter("192.0.2.5").ok, false);
    assert.equal(admit(ticketFor(key)), USER);
    assert.ok(first.ok && first.subject);
    admissions.release(first.subject, 0);
    assert.equal(enter("192.0.2.5").ok, true);
    // Remembered for a minute, so that leaving frees nobody of what is owed.
    make();
    for (let i = 0, isOk = true; isOk && i < 70_000; i++) {
      const verdict = enter(`2001:db8:0:${i}`);
      isOk = verdict.ok;
      if (verdict.ok && verdict.subject) admissions.release(verdict.subject, 0);
    }
    assert.equal(enter("192.0.2.6").ok, false);
    assert.equal(admit(ticketFor(key)), USER);
    admissions.sweep(60_000);
    assert.equal(enter("192.0.2.6").ok, true);
  });

  it("who leaves and comes back at once finds its bucket as empty as it was", () => {
    make("open", { anonymous: { bytesPerSecond: 1_000, burstBytes: 70_000 } });
    const enter = (now: number) => {
      const verdict = admissions.admit({ key, ticket: undefined, address: "192.0.2.1" }, NOW, now);
      assert.ok(verdict.ok && verdict.subject);
      return verdict.subject;
    };
    const first = enter(0);
    assert.equal(first.bucket.take(80_000, 0), 10_000);
    admissions.release(first, 0);
    admissions.sweep(5_000);
    assert.equal(enter(5_000).bucket.waitMs(5_000), 5_000);
    admissions.release(first, 6_000);
    admissions.sweep(66_000);
    assert.notEqual(enter(66_000), first, "forgotten after a minute");
  });

  it("revoked, a key's tickets are void until newer ones come; without a ticket it doesn't come in either", () => {
    admissions.block({ key }, NOW);
    assert.match(admit(ticketFor(key)), /revoked/);
    assert.match(admit(undefined), /revoked/);
    assert.equal(admit(ticketFor(key, { issuedAt: NOW + 1 })), USER);
    const of = new Uint8Array(32).fill(2);
    assert.equal(admit(ticketFor(of), { of }), USER, "others are not concerned");
  });

  it("revoked, a subject's tickets are void for all its keys, until newer ones come", () => {
    admissions.block({ subject: USER }, NOW);
    assert.match(admit(ticketFor(key)), /revoked/);
    assert.equal(admit(ticketFor(key, { subject: AGENT })), AGENT);
    assert.equal(admit(ticketFor(key, { issuedAt: NOW + 1 })), USER);
  });

  it("a revocation holds as long as any ticket from before it lives", () => {
    admissions.block({ key }, NOW);
    const until = NOW + MAX_TICKET_LIFETIME_MS - 1;
    admissions.block({ subject: AGENT }, until);
    assert.match(admit(ticketFor(key, { expiresAt: until + 1 }), { nowMs: until }), /revoked/);
    admissions.block({ subject: AGENT }, until + 2);
    assert.equal(admit(undefined, { nowMs: until + 2 }), "address:192.0.2.1");
  });
});

describe("derp properties: admission by ticket", () => {
  let relay: TestRelay;
  const start = async (options: DerpServerOptions = {}): Promise<void> => {
    relay = await startRelay({ tickets: { ...checks, nowMs: () => NOW }, ...options });
  };
  const withTicket = (change: Partial<RelayTicket> = {}) => {
    const { privateKey, publicKey } = keyPair();
    const headers = { "Derp-Ticket": ticketFor(publicKey, change) };
    return { privateKey, headers };
  };
  afterEach(() => relay.close());

  it("the header Derp-Ticket lets its key in, where none else comes in", async () => {
    await start({ admission: "ticket" });
    const a = await relay.client(withTicket());
    await assert.rejects(relay.client(), { code: "ERR_RELAY_CLOSED" });
    const stolen = { ...withTicket(), privateKey: keyPair().privateKey };
    await assert.rejects(relay.client(stolen), { code: "ERR_RELAY_CLOSED" });
    a.client.send(a.key, utf8("in"));
    await a.packets.take();
    const refused = relay.server.metrics().find(({ name }) => name === "not_admitted");
    assert.equal(refused?.values[0].value, 2);
  });

  it("who asked for the upgrade before there was a ticket says it in ClientInfo, where it counts the same", async () => {
    await start({ admission: "ticket" });
    const join = async (ticket: string | undefined, { privateKey, publicKey } = keyPair()) => {
      const environment = {};
      const early = earlyDial(relay.url, { environment });
      const client = new DerpClient({ url: relay.url, privateKey, environment, early, ticket });
      const confirmed = once(client, "confirmed");
      await client.connect();
      await Promise.race([confirmed, once(client, "close").then(([error]) => Promise.reject(error))]);
      return { client, publicKey };
    };
    const keys = keyPair();
    const { client } = await join(ticketFor(keys.publicKey), keys);
    await client.close();
    await assert.rejects(join(undefined), { code: "ERR_RELAY_CLOSED" });
    await assert.rejects(join(ticketFor(keys.publicKey)), { code: "ERR_RELAY_CLOSED" });
  });

  it("a browser brings its ticket in the query of its WebSocket", async () => {
    await start({ admission: "ticket" });
    const { privateKey, publicKey } = keyPair();
    const url = new URL(relay.url.replace("http", "ws"));
    url.searchParams.set("ticket", ticketFor(publicKey));
    const webSocket = new WebSocket(url, ["derp"]);
    const stream = createWebSocketStream(webSocket);
    await once(webSocket, "open");
    stream.resume();
    const shared = sharedKey(relay.server.publicKey, privateKey);
    const info = { version: 2, canAckPings: true };
    stream.write(sealClientInfo(info, publicKey, shared, new Uint8Array(24)));
    await until(() => relay.server.stats.currentConnections === 1);
    webSocket.terminate();
  });

  it("closeSubject ends all connections of a subject, and their tickets", async () => {
    await start();
    const one = withTicket();
    const [a, b, other] = [
      await relay.client(one),
      await relay.client(withTicket()),
      await relay.client(withTicket({ subject: AGENT })),
    ];
    const ended = Promise.all([once(a.client, "close"), once(b.client, "close")]);
    relay.server.closeSubject(USER, NOW);
    await ended;
    await assert.rejects(relay.client(one), { code: "ERR_RELAY_CLOSED" });
    await assert.rejects(relay.client(withTicket()), { code: "ERR_RELAY_CLOSED" });
    await relay.client(withTicket({ issuedAt: NOW + 1 }));
    await other.client.ping();
  });

  it("a sibling's ClosePeer voids the tickets its key has", async () => {
    const meshKey = "ab".repeat(32);
    await start({ meshKey });
    const one = withTicket();
    const { client, key } = await relay.client(one);
    const sibling = await rawJoin(relay, { info: { meshKey } });
    const ended = once(client, "close");
    sibling.socket.write(encodeFrame({ kind: "closePeer", key }));
    await ended;
    await assert.rejects(relay.client(one), { code: "ERR_RELAY_CLOSED" });
    sibling.socket.destroy();
  });

  it("connections give their share back however they end", async () => {
    await start({ admissionLimits: { anonymousPerAddress: 2 } });
    for (let i = 0; i < 6; i++) {
      const { client } = await relay.client();
      await client.close();
      await until(() => relay.server.stats.currentConnections === 0);
    }
    await Promise.all([relay.client(), relay.client()]);
    await assert.rejects(relay.client(), { code: "ERR_RELAY_CLOSED" });
    await relay.client(withTicket());
  });
});
