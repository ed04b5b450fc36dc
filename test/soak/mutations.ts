// biome-ignore-all lint/suspicious/noTemplateCurlyInString: pieces of code, not templates
// Faults for test/soak/broken.ts: each takes one protection away that a peer, a thief or a lost path would find missing.
// `find` must stand in `file` exactly once (`all`: at least once), so that an entry can't outlive the code it is about.

export interface Change {
  file: string;
  find: string;
  replace: string;
  /** Every occurrence, not the only one. */
  all?: boolean;
}

export interface Mutation {
  /** What is wrong then, as a sentence. */
  name: string;
  changes: readonly Change[];
  /** Spec files of which at least one test must fail. */
  specs: readonly string[];
}

/** @returns the file's text with the fault in it @throws when the entry does not fit the text */
export function changed(text: string, { file, find, replace, all }: Change): string {
  const count = text.split(find).length - 1;
  if (count === 0 || (count > 1 && !all))
    throw new Error(`${file} holds this ${count} times, mutations.ts no longer fits it:\n${find}`);
  return text.replaceAll(find, () => replace);
}

const one = (name: string, file: string, find: string, replace: string, ...specs: string[]): Mutation => ({
  name,
  changes: [{ file, find, replace }],
  specs,
});

const SESSION = ["session", "lanes", "hostile", "halves", "transfer"].map(
  (of) => `mesh/session/${of}.test.ts`,
);
const DEVICE = "mesh/wireguard/device.test.ts";
const COOKIES = "mesh/wireguard/cookie.test.ts";
const RELAY = "derp/server/relay.test.ts";
const ADMISSION = "mesh/node/admission.test.ts";
const COORDINATOR = "coordinator/coordinator.test.ts";
const SIGNED = "coordinator/signed.test.ts";
const TICKETS = "derp/server/admission.test.ts";
const ARCHIVE = "control/provisioner/terraform/workdir.test.ts";
const ROLES = "control/auth/authorize.test.ts";
const LOGIN = "control/api/login.test.ts";

export const mutations: readonly Mutation[] = [
  // --- WireGuard
  one(
    "the replay window is one packet too long",
    "mesh/wireguard/replay.ts",
    "counter <= this.#newest - REPLAY_WINDOW_PACKETS",
    "counter < this.#newest - REPLAY_WINDOW_PACKETS",
    "mesh/wireguard/replay.test.ts",
  ),
  one(
    "the replay window is one packet too short",
    "mesh/wireguard/replay.ts",
    "counter <= this.#newest - REPLAY_WINDOW_PACKETS",
    "counter <= this.#newest - REPLAY_WINDOW_PACKETS + 1",
    "mesh/wireguard/replay.test.ts",
  ),
  one(
    "the replay window forgets nothing when it moves",
    "mesh/wireguard/replay.ts",
    "for (let i = 1; i <= clear; i++)",
    "for (let i = 1; i < clear; i++)",
    "mesh/wireguard/replay.test.ts",
  ),
  one(
    "mac1 is not checked",
    "mesh/wireguard/device.ts",
    "if (!this.#checker.mac1IsValid(message)) {",
    "if (!this.#checker.mac1IsValid(message) && message.length < 0) {",
    DEVICE,
  ),
  {
    name: "a cookie is not bound to an address",
    changes: [{ file: "mesh/wireguard/cookie.ts", find: "utf8(from.key)", replace: 'utf8("")', all: true }],
    specs: [COOKIES],
  },
  one(
    "a cookie is good for ever",
    "mesh/wireguard/cookie.ts",
    "if (!this.#secret || now >= this.#secretUntilAt) return false;",
    "if (!this.#secret) return false;",
    COOKIES,
  ),
  one(
    "under load nobody is asked for a cookie",
    "mesh/wireguard/load.ts",
    "return now < this.#underLoadUntilAt;",
    "return now < this.#underLoadUntilAt - 1e9;",
    DEVICE,
    "mesh/wireguard/load.test.ts",
  ),
  one(
    "with a cookie a source may ask for any number of handshakes",
    "mesh/wireguard/load.ts",
    "if (bucket.tokens < 1) return false;",
    "",
    DEVICE,
    "mesh/wireguard/load.test.ts",
  ),
  one(
    "an old initiation is answered again",
    "mesh/wireguard/peer.ts",
    "if (this.#lastTimestamp && !isLater(timestamp, this.#lastTimestamp)) return false;",
    "",
    DEVICE,
  ),
  one(
    "keys are accepted after their time",
    "mesh/wireguard/device.ts",
    "if (now >= pair.rejectAt) {",
    "if (now >= pair.rejectAt + 1e9) {",
    DEVICE,
  ),
  one(
    "strangers are kept without a bound",
    "mesh/wireguard/device.ts",
    "if (crowd.length === 0) return;",
    "if (crowd.length >= 0) return;",
    DEVICE,
  ),

  // --- sessions
  one(
    "an acknowledgement of a packet that was never sent is accepted",
    "mesh/session/recovery.ts",
    "if (ack.ranges[0][1] >= nextNumber)",
    "if (ack.ranges[0][1] > nextNumber)",
    ...SESSION,
  ),
  one(
    "credit is not returned when a stream is reset",
    "mesh/session/receive-half.ts",
    "    this.#contiguousEnd = this.highest;\n    this.window.consumed = this.highest;",
    "    this.#contiguousEnd = this.highest;",
    ...SESSION,
  ),
  one(
    "credit for another stream is not returned when one is over",
    "mesh/session/streams.ts",
    "else this.#peerClosed++;",
    "",
    ...SESSION,
  ),
  one(
    "what a reset stream had buffered stays counted",
    "mesh/session/streams.ts",
    "this.#bufferedBytes -= stream.send.reset(code);",
    "stream.send.reset(code);",
    ...SESSION,
  ),
  one(
    "a lane that died stays in use",
    "mesh/session/session.ts",
    "    this.#lanes.delete(lane);\n    this.#closing?.removeLane(lane);",
    "    this.#closing?.removeLane(lane);",
    ...SESSION,
  ),
  one(
    "what was under way on a lane that died is forgotten",
    "mesh/session/session.ts",
    "this.#recovery.abandon(removed);",
    "",
    ...SESSION,
  ),
  one(
    "a lane in doubt keeps what is under way on it",
    "mesh/session/session.ts",
    "if (suspected) this.#recovery.abandon(suspected);",
    "",
    ...SESSION,
  ),
  one(
    "what a dead lane still had to acknowledge is forgotten",
    "mesh/session/acks.ts",
    "if (pending && to !== undefined && !this.#pending.has(to))",
    "if (pending && to === undefined)",
    "mesh/session/acks.test.ts",
  ),
  one(
    "stream data that came before a resumption is delivered again",
    "mesh/session/receive-half.ts",
    "if (end <= this.#contiguousEnd) return rise;",
    "",
    ...SESSION,
  ),
  one(
    "the part of a frame that was there already is delivered twice",
    "mesh/session/receive-half.ts",
    "this.#append(data.subarray(this.#contiguousEnd - offset));",
    "this.#append(data);",
    ...SESSION,
  ),
  one(
    "a duplicate packet is taken in again",
    "mesh/session/acks.ts",
    "return number < this.#floor || this.#received.contains(number);",
    "return number < this.#floor;",
    ...SESSION,
    "mesh/session/acks.test.ts",
  ),
  one(
    "a stream's window may be overrun",
    "mesh/session/receive-half.ts",
    "if (end > this.window.limit)",
    "if (end > 2 * this.window.limit)",
    ...SESSION,
  ),
  one(
    "a session's window may be overrun",
    "mesh/session/streams.ts",
    "if (this.#receivedBytes > this.#window.limit)",
    "if (this.#receivedBytes > 2 * this.#window.limit)",
    ...SESSION,
  ),
  one(
    "a peer may open one stream more than allowed",
    "mesh/session/streams.ts",
    "if (index >= this.#maxPeerStreams)",
    "if (index > this.#maxPeerStreams)",
    ...SESSION,
  ),
  one(
    "gaps in streams are kept without a bound",
    "mesh/session/streams.ts",
    "return ranges > this.#reorderRanges && ranges > this.#limits.maxReorderRanges;",
    "return false;",
    ...SESSION,
  ),
  one(
    "the end of a stream may move",
    "mesh/session/receive-half.ts",
    "if (finalSize !== (this.finalSize ?? finalSize) || finalSize < this.highest)",
    "if (finalSize < 0)",
    ...SESSION,
  ),
  one(
    "a peer's reason steers the terminal",
    "mesh/session/session.ts",
    'const reason = frame.reason.replace(/[\\u0000-\\u001f\\u007f-\\u009f]/g, "?");',
    "const { reason } = frame;",
    ...SESSION,
  ),
  one(
    "a session goes on under another session's id",
    "mesh/session/handshake.ts",
    "if (this.sessionId && !equalBytes(this.sessionId, hello.sessionId))",
    "if (this.sessionId && hello.sessionId.length < 0)",
    ...SESSION,
  ),

  // --- who may do what
  one(
    "a signature is not checked",
    "mesh/wire/signed.ts",
    "if (!options.verify(fromBase64(key.publicKey), signedBytes(statement[1], keyId, bodyBytes), signature))",
    "if (signature.length < 0)",
    SIGNED,
    ADMISSION,
  ),
  one(
    "one kind of statement passes for another",
    "mesh/wire/signed.ts",
    "if (statement[1] !== STATEMENT_KINDS[kind]) throw malformed(`kind ${statement[1]}`);",
    "",
    SIGNED,
  ),
  one(
    "an expired grant opens a session",
    "mesh/wire/signed.ts",
    "if (parsed.expiresAt <= options.nowMs)",
    "if (parsed.expiresAt < 0)",
    SIGNED,
    ADMISSION,
  ),
  one(
    "a grant is good at the very moment it expires",
    "mesh/wire/signed.ts",
    "if (parsed.expiresAt <= options.nowMs)",
    "if (parsed.expiresAt < options.nowMs)",
    SIGNED,
    ADMISSION,
  ),
  one(
    "a statement from the future is believed",
    "mesh/wire/signed.ts",
    "if (parsed.issuedAt > options.nowMs + CLOCK_SLACK_MS)",
    "if (parsed.issuedAt < 0)",
    SIGNED,
    ADMISSION,
  ),
  one(
    "a grant opens sessions of any node key",
    "mesh/node/admission.ts",
    'if (!isOurs || !sameNodeKey(grant.nodeKey, nodeKey)) return { refuse: "notYours" };',
    'if (!isOurs) return { refuse: "notYours" };',
    ADMISSION,
  ),
  one(
    "a grant for one agent opens another",
    "mesh/node/admission.ts",
    'if (!isOurs || !sameNodeKey(grant.nodeKey, nodeKey)) return { refuse: "notYours" };',
    'if (!sameNodeKey(grant.nodeKey, nodeKey)) return { refuse: "notYours" };',
    ADMISSION,
  ),
  one(
    "an agent takes a revoked grant",
    "mesh/node/admission.ts",
    'return this.#revoked.has(grant.id) ? { refuse: "revoked" } : grant;',
    "return grant;",
    ADMISSION,
    "test/mesh.test.ts",
  ),
  one(
    "sessions under a revoked grant go on",
    "mesh/node/node.ts",
    'if (link.grant && ids.has(link.grant.id)) link.close("revoked");',
    'if (link.grant && ids.has("")) link.close("revoked");',
    "test/mesh.test.ts",
  ),
  one(
    "a session goes on for ever under a grant nobody renews",
    "mesh/node/admission.ts",
    "grant !== undefined && now - renewedAt >= MAX_UNRENEWED_MS;",
    "grant !== undefined && now - renewedAt < 0;",
    ADMISSION,
  ),
  one(
    "the coordinator revokes without telling agents",
    "coordinator/coordinator.ts",
    "if (ids) sendVoid(connection, ids);",
    "",
    COORDINATOR,
  ),
  one(
    "the coordinator forgets what was revoked while the agent was away",
    "coordinator/store.ts",
    "this.#void.set(id, { agentId: grant.agentId, expiresAt: grant.expiresAt });",
    "",
    COORDINATOR,
  ),
  one(
    "control does not look for grants that a change made void",
    "control/mesh/revocation.ts",
    'topics.watch("api_key", ANY, (id) => this.#onUser(id)),',
    "",
    "control/mesh.test.ts",
  ),
  one(
    "a service is allowed that the grant does not name",
    "mesh/wire/signed.ts",
    'return grant.permissions.includes("*") || grant.permissions.includes(service);',
    "return grant.permissions.length > 0 || service !== undefined;",
    SIGNED,
    "test/mesh.test.ts",
    "test/mesh-services.test.ts",
  ),
  one(
    "an agent opens at a client what another agent was given a token for",
    "mesh/node/services.ts",
    "const doorKey = (agentId: string, token: string): string => `${agentId} ${token}`;",
    "const doorKey = (_agentId: string, token: string): string => token;",
    "test/mesh-services.test.ts",
    "test/mesh-control.test.ts",
  ),
  one(
    "a resume token serves whoever has another credential",
    "coordinator/resume.ts",
    "parsed.data.credential !== credential || ",
    "",
    "coordinator/resume.test.ts",
  ),
  one(
    "the signature of a resume token is not checked",
    "coordinator/resume.ts",
    "if (!verifyEd25519(fromBase64(key.publicKey), concatBytes(CONTEXT, body), signature)) return undefined;",
    "",
    "coordinator/resume.test.ts",
  ),
  one(
    "a user asks for grants without a pace",
    "coordinator/pace.ts",
    "if (lane.tokens < 1) return undefined;",
    "",
    "coordinator/pace.test.ts",
  ),

  // --- relays
  one(
    "the oldest of several connections with one key receives",
    "derp/server/relay.ts",
    "    clients.push(client);\n    peer.active = client;",
    "    clients.push(client);\n    peer.active ??= client;",
    RELAY,
  ),
  one(
    "a connection that writes does not become the one that receives",
    "derp/server/relay.ts",
    "if (client.peer.active !== client && !client.gone) client.peer.active = client;",
    "",
    RELAY,
  ),
  one(
    "the liveliest of too many connections is closed",
    "derp/server/relay.ts",
    "clients.length >= this.#connectionsPerKey && clients.reduce(quieter);",
    "clients.length >= this.#connectionsPerKey && clients.reduce(louder);",
    RELAY,
  ),
  one(
    "a connection that ended still receives",
    "derp/server/relay.ts",
    "if (peer.active === client) peer.active = clients.length > 0 ? clients.reduce(louder) : undefined;",
    "",
    RELAY,
  ),
  one(
    "PeerGone is told without a bound",
    "derp/server/relay.ts",
    "    if (this.#tokens < 1) return false;\n    this.#tokens--;",
    "",
    RELAY,
  ),
  one(
    "a ticket serves another key",
    "derp/server/admission.ts",
    'if (opened.nodeKey !== toBase64(key)) throw new TicketError("its ticket is for another key");',
    "",
    TICKETS,
  ),
  one(
    "a relay takes revoked tickets",
    "derp/server/admission.ts",
    "return blockedAt !== undefined && issuedAt <= blockedAt;",
    "return blockedAt !== undefined && issuedAt < 0;",
    TICKETS,
  ),
  one(
    "a relay that wants tickets lets in who has none",
    "derp/server/admission.ts",
    'if (this.#mode === "ticket") return { ok: false, why };',
    "",
    TICKETS,
  ),
  one(
    "STUN answers are not limited",
    "derp/server/stun.ts",
    "if (!refilled(entry, burstPerSource, perSecondPerSource, now)) return false;",
    "",
    "derp/server/stun.test.ts",
  ),
  one(
    "a region whose connection fell silent stays in use",
    "derp/client/regions.ts",
    'dead("the relay connection went silent");',
    "void 0;",
    "derp/client/keeping.test.ts",
  ),
  one(
    "a region whose connection ended is not dialled again",
    "derp/client/regions.ts",
    "    if (!this.#wanted(link)) return;\n    if (link.failures++ === 0)",
    "    if (!this.#wanted(link) || link.known) return;\n    if (link.failures++ === 0)",
    "derp/client/keeping.test.ts",
    "derp/client/regions.test.ts",
  ),

  // --- API
  one(
    "everybody's things count as one's own",
    "control/auth/authorize.ts",
    "const isOwn = object.ownerId !== undefined && object.ownerId === subject.userId;",
    "const isOwn = object.ownerId !== undefined;",
    ROLES,
  ),
  one(
    "a user-admin resets an owner's password",
    "control/auth/authorize.ts",
    'if (action !== "read") return { allowed: false,',
    'if (action === "read") return { allowed: false,',
    ROLES,
  ),
  one(
    "a key's scope is not looked at",
    "control/auth/authorize.ts",
    "if (!inScope(subject, action, object.type)) {",
    "if (!inScope(subject, action, object.type) && action === undefined) {",
    ROLES,
  ),
  one(
    "any secret goes with a key's id",
    "control/api/authenticate.ts",
    "if (!key || !secretMatches(parsed.secret, key.secret_hash)) return undefined;",
    "if (!key) return undefined;",
    LOGIN,
  ),
  one(
    "an expired key is taken",
    "control/api/authenticate.ts",
    "if (isExpired({ expiresAt: key.expires_at.getTime() }, now.getTime())) return undefined;",
    "",
    LOGIN,
  ),
  one(
    "a suspended user goes on",
    "control/api/authenticate.ts",
    'if (user.status === "suspended") throw suspended();',
    "",
    LOGIN,
  ),
  one(
    "a page of another site acts with the user's cookie",
    "control/api/authenticate.ts",
    "if (found.fromCookie && isCrossSite(req))",
    'if (found.fromCookie && isCrossSite(req) && found.token === "")',
    LOGIN,
  ),
  one(
    "requests are not limited",
    "control/api/ratelimit.ts",
    "const ok = tokens >= 1;",
    "const ok = tokens >= -1e9;",
    "control/api/ratelimit.test.ts",
  ),

  // --- archives, paths, terminals, other programs
  one(
    "a template's file leads out of its folder by ..",
    "control/provisioner/terraform/workdir.ts",
    'if (parts.some((part) => part === ".." || part.split("\\\\").includes("..")))',
    'if (parts.some((part) => part.split("\\\\").length > 1 && part.includes("..")))',
    ARCHIVE,
  ),
  {
    name: "a template's file is written through a link",
    changes: [
      {
        file: "control/provisioner/terraform/workdir.ts",
        find: "if (hasLinkAbove(name, links)) throw refuse(`${shown(name)} lies below a link`);",
        replace: "",
      },
      // Links come last, so that one fault alone lets nothing out.
      {
        file: "control/provisioner/terraform/workdir.ts",
        find: 'if (header.type === "symlink") links.set(name, header.linkname ?? "");',
        replace:
          'if (header.type === "symlink") links.set(name, header.linkname ?? "");\n' +
          '      if (header.type === "symlink") await symlink(header.linkname ?? "", target);',
      },
    ],
    specs: [ARCHIVE],
  },
  one(
    "a template's link leads out of its folder",
    "control/provisioner/terraform/workdir.ts",
    "if (real !== root && !real.startsWith(root + path.sep))",
    'if (real === "")',
    ARCHIVE,
  ),
  one(
    "a template's files may be larger than allowed",
    "control/provisioner/terraform/workdir.ts",
    "if (totalBytes > limits.maxTotalBytes)",
    "if (totalBytes < 0)",
    ARCHIVE,
  ),
  one(
    "text of a server steers the terminal",
    "client/text.ts",
    '.replace(/[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]/g, "")',
    "",
    "client/units.test.ts",
    "client/session/notices.test.ts",
  ),
  one(
    "escape sequences of a server lose their first character only",
    "client/text.ts",
    '.replace(/\\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\\x07\\x1b]*(?:\\x07|\\x1b\\\\)?|[ -/]*[0-~])/g, "")',
    "",
    "client/units.test.ts",
    "client/session/notices.test.ts",
  ),
  one(
    "host names that a shell would run reach it",
    "client/ssh-config/section.ts",
    'const HOSTILE_HOSTS = ["!-*", `"!*\'*"`];',
    "const HOSTILE_HOSTS: string[] = [];",
    "client/ssh-config/section.test.ts",
    "client/ssh-config/config-ssh.test.ts",
  ),
];
