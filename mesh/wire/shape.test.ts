import assert from "node:assert/strict";
import fc from "fast-check";
import * as z from "zod";
import { CoordinatorMessage, NodeMessage } from "./coordinator.ts";
import { WireError } from "./errors.ts";
import { CallbackMetadata, ListenMetadata, SessionSummary, SessionsMetadata } from "./forward.ts";
import * as s from "./shape.ts";
import { Grant, isNodeKey, NodeRecord, RelayTicket } from "./signed.ts";

const UUID = "6f1c1f0a-9c0e-4f6f-8a3b-0d9a54d0c1aa";
const KEY = Buffer.alloc(32, 7).toString("base64");
const TOKEN = Buffer.alloc(16, 7).toString("base64");

// The same, as the schema library says it: what must be let in, and what kept out.
const zKey = z.string().refine(isNodeKey);
const instant = z.number().int().min(0);
const request = z.number().int().min(1);
const statement = z.base64().max(8192);
const ids = z.array(z.uuid()).max(4096);
const keys = z
  .array(z.object({ id: z.string().regex(/^[0-9a-f]{16}$/), publicKey: zKey }))
  .min(1)
  .max(16);
const resumeToken = z.string().max(2048).optional();
const token = z.string().regex(/^[A-Za-z0-9+/]{22}==$/);
const port = z.number().int().min(0).max(65_535);
const v = z.literal(1);
const short = z.string().max(64);
const word = z.string().max(32);

const twins: { name: string; ours: s.Shape<unknown, unknown>; theirs: z.ZodType; samples: unknown[] }[] = [
  {
    name: "a grant",
    ours: Grant,
    theirs: z.object({
      id: z.uuid(),
      nodeKey: zKey,
      userId: z.uuid(),
      username: z.string().max(128),
      agentId: z.uuid(),
      permissions: z.array(z.string().max(256)).min(1).max(32),
      issuedAt: instant,
      expiresAt: instant,
    }),
    samples: [
      {
        id: UUID,
        nodeKey: KEY,
        userId: UUID,
        username: "ada",
        agentId: UUID,
        permissions: ["*", "tcp:127.0.0.1:80"],
        issuedAt: 0,
        expiresAt: 1,
        later: true,
      },
    ],
  },
  {
    name: "a node record",
    ours: NodeRecord,
    theirs: z.object({
      agentId: z.uuid(),
      nodeKey: zKey,
      homeRegion: z.number().int().min(1).optional(),
      issuedAt: instant,
      expiresAt: instant,
    }),
    samples: [
      { agentId: UUID, nodeKey: KEY, homeRegion: 999, issuedAt: 0, expiresAt: 1 },
      { agentId: UUID, nodeKey: KEY, issuedAt: 0, expiresAt: 1 },
    ],
  },
  {
    name: "a relay ticket",
    ours: RelayTicket,
    theirs: z.object({
      nodeKey: zKey,
      subject: z.string().regex(/^(user|agent):[0-9a-f-]{36}$/),
      issuedAt: instant,
      expiresAt: instant,
    }),
    samples: [{ nodeKey: KEY, subject: `user:${UUID}`, issuedAt: 0, expiresAt: 1 }],
  },
  {
    name: "what nodes say",
    ours: NodeMessage,
    theirs: z.discriminatedUnion("type", [
      z.object({
        type: z.literal("hello"),
        version: request,
        nodeKey: zKey,
        homeRegion: request.optional(),
        liveGrants: ids.default([]),
      }),
      z.object({ type: z.literal("home"), homeRegion: request }),
      z
        .object({
          type: z.literal("grant-request"),
          request,
          agentId: z.uuid().optional(),
          workspace: z.string().min(1).max(130).optional(),
          agent: z.string().min(1).max(64).optional(),
        })
        .refine(
          ({ agentId, workspace, agent }) =>
            (agentId === undefined) !== (workspace === undefined) &&
            (agent === undefined || workspace !== undefined),
        ),
      z.object({ type: z.literal("still-granted"), request, grants: ids }),
    ]),
    samples: [
      { type: "hello", version: 1, nodeKey: KEY, homeRegion: 3, liveGrants: [UUID] },
      { type: "hello", version: 1, nodeKey: KEY },
      { type: "home", homeRegion: 2 },
      { type: "grant-request", request: 1, agentId: UUID },
      { type: "grant-request", request: 1, workspace: "ada/dev", agent: "main" },
      { type: "still-granted", request: 7, grants: [UUID] },
    ],
  },
  {
    name: "what a coordinator says",
    ours: CoordinatorMessage,
    theirs: z.discriminatedUnion("type", [
      z.object({
        type: z.literal("welcome"),
        version: request,
        serverTimeMs: z.number().int(),
        signingKeys: keys,
        resumeToken,
        relayTicket: statement.optional(),
        voidGrants: ids,
        agentId: z.uuid().optional(),
      }),
      z.object({
        type: z.literal("relay-map"),
        map: z.looseObject({ Regions: z.record(z.string(), z.unknown()) }),
      }),
      z.object({ type: z.literal("relay-ticket"), ticket: statement, resumeToken }),
      z.object({ type: z.literal("signing-keys"), signingKeys: keys }),
      z.object({
        type: z.literal("grant"),
        request,
        grant: statement,
        record: statement.optional(),
        agentId: z.uuid().optional(),
        workspace: z
          .object({
            id: z.uuid(),
            name: short,
            owner_name: z.string().max(128),
            outdated: z.boolean(),
            latest_build: z.object({
              id: z.uuid(),
              build_number: z.number().int(),
              transition: word,
              status: word,
            }),
          })
          .optional(),
        agent: z
          .object({
            id: z.uuid(),
            name: short,
            status: word,
            lifecycle_state: word,
            startup_script_behavior: word,
            connection_timeout_seconds: z.number().int(),
            troubleshooting_url: z.string(),
            operating_system: short,
            directory: z.string(),
            expanded_directory: z.string(),
          })
          .optional(),
      }),
      z.object({ type: z.literal("record"), agentId: z.uuid(), record: statement }),
      z.object({ type: z.literal("record-gone"), agentId: z.uuid() }),
      z.object({ type: z.literal("revoke"), grants: ids }),
      z.object({ type: z.literal("void-grants"), request, grants: ids }),
      z.object({
        type: z.literal("error"),
        request: request.optional(),
        code: short,
        message: z.string().max(1024),
      }),
    ]),
    samples: [
      {
        type: "welcome",
        version: 1,
        serverTimeMs: 1.7e12,
        signingKeys: [{ id: "0123456789abcdef", publicKey: KEY }],
        resumeToken: "t",
        relayTicket: "AAAA",
        voidGrants: [UUID],
        agentId: UUID,
      },
      { type: "relay-map", map: { Regions: { 1: { RegionID: 1 } }, omitDefaultRegions: true } },
      { type: "relay-ticket", ticket: "AAAA", resumeToken: "t" },
      { type: "signing-keys", signingKeys: [{ id: "0123456789abcdef", publicKey: KEY, extra: 1 }] },
      {
        type: "grant",
        request: 1,
        grant: "AAAA",
        record: "AA==",
        agentId: UUID,
        workspace: {
          id: UUID,
          name: "dev",
          owner_name: "ada",
          outdated: false,
          latest_build: { id: UUID, build_number: 1, transition: "start", status: "running" },
        },
        agent: {
          id: UUID,
          name: "main",
          status: "connected",
          lifecycle_state: "ready",
          startup_script_behavior: "blocking",
          connection_timeout_seconds: 120,
          troubleshooting_url: "",
          operating_system: "linux",
          directory: "",
          expanded_directory: "/home/ada",
        },
      },
      { type: "record", agentId: UUID, record: "AAA=" },
      { type: "record-gone", agentId: UUID },
      { type: "revoke", grants: [] },
      { type: "void-grants", request: 3, grants: [UUID] },
      { type: "error", request: 3, code: "ERR_FORBIDDEN", message: "no" },
    ],
  },
  {
    name: "metadata of forwards",
    ours: ListenMetadata,
    theirs: z.discriminatedUnion("kind", [
      z.object({ v, token, kind: z.literal("tcp"), host: z.string().max(255), port }),
      z.object({ v, token, kind: z.literal("unix"), path: z.string().min(1).max(4_096) }),
    ]),
    samples: [
      { v: 1, token: TOKEN, kind: "tcp", host: "", port: 0 },
      { v: 1, token: TOKEN, kind: "unix", path: "/x" },
    ],
  },
  {
    name: "metadata of callbacks",
    ours: CallbackMetadata,
    theirs: z.object({ token, origin: z.object({ address: z.string().max(255), port }).optional() }),
    samples: [{ token: TOKEN, origin: { address: "::1", port: 1 } }, { token: TOKEN }],
  },
  {
    name: "metadata of session lists",
    ours: SessionsMetadata,
    theirs: z.discriminatedUnion("op", [
      z.object({ v, op: z.literal("list") }),
      z.object({ v, op: z.literal("close"), id: short }),
    ]),
    samples: [
      { v: 1, op: "list" },
      { v: 1, op: "close", id: "1f" },
    ],
  },
  {
    name: "a line of a session list",
    ours: SessionSummary,
    theirs: z.object({
      id: short,
      startedAt: z.number(),
      lastHeardAt: z.number(),
      isCurrent: z.boolean(),
      resumeWindowMs: z.number(),
      path: z.string().max(128),
      rttMs: z.number().optional(),
      streams: z.array(
        z.object({ service: z.string().max(512), what: z.string().max(256), openedAt: z.number() }),
      ),
    }),
    samples: [
      {
        id: "1f",
        startedAt: 1.5,
        lastHeardAt: 2,
        isCurrent: true,
        resumeWindowMs: 3,
        path: "relay",
        rttMs: 0.5,
        streams: [{ service: "session", what: "shell", openedAt: 1 }],
      },
    ],
  },
];

/** Where a value can be changed: the path to each of its members, itself included. */
function paths(value: unknown, path: string[] = []): string[][] {
  if (typeof value !== "object" || value === null) return [path];
  return [path, ...Object.entries(value).flatMap(([name, member]) => paths(member, [...path, name]))];
}

function changed(value: unknown, [name, ...rest]: string[], change: (member: unknown) => unknown): unknown {
  if (name === undefined) return change(value);
  const copy = (Array.isArray(value) ? [...value] : { ...(value as object) }) as Record<string, unknown>;
  const member = changed(copy[name], rest, change);
  if (member === undefined && !Array.isArray(copy)) delete copy[name];
  else copy[name] = member;
  return copy;
}

/** What a hostile peer might put in the place of a member; limits of the formats and one more among it. */
const HOSTILE: unknown[] = [
  ...[undefined, null, true, "", [], {}, -1, 0, 0.5, 1, 2 ** 53, 1e300, 65_535, 65_536],
  ...[
    1, 32, 33, 64, 65, 128, 129, 130, 131, 255, 256, 257, 512, 513, 1024, 1025, 2048, 2049, 4096, 4097, 8192,
    8196,
  ].map((length) => "a".repeat(length)),
  ...[1, 16, 17, 32, 33, 4096, 4097].map((length) => Array.from({ length }, () => UUID)),
  ...[UUID.toUpperCase(), UUID.replace("-4", "-9"), "0".repeat(36), `${KEY}=`, KEY.replace("c=", "d=")],
  ...["AA=", "A===", "AA-_", "AAAA\n", `${TOKEN}\n`, "constructor", "__proto__", "toString"],
];

/** Lists of what is in a list already, around the limits there are. */
const longer = (member: unknown): unknown[] =>
  Array.isArray(member)
    ? [16, 17, 32, 33, 4096, 4097].map((length) => Array.from({ length }, () => member[0]))
    : [];

const memberAt = (value: unknown, path: string[]): unknown =>
  path.reduce((at, name) => (at as Record<string, unknown>)[name], value);

const outcome = (parse: () => unknown): { value: unknown } | "refused" => {
  try {
    // As the wire has it: members that are undefined aren't there.
    return { value: JSON.parse(JSON.stringify(parse())) };
  } catch (error) {
    assert.ok(error instanceof WireError || error instanceof z.ZodError, String(error));
    return "refused";
  }
};

describe("shapes of JSON values", () => {
  for (const { name, ours, theirs, samples } of twins) {
    it(`${name}: lets in what is well-formed, without unknown members`, () => {
      for (const sample of samples)
        assert.deepEqual(
          outcome(() => ours.parse(sample)),
          outcome(() => theirs.parse(sample)),
        );
      for (const sample of samples)
        assert.notEqual(
          outcome(() => ours.parse(sample)),
          "refused",
        );
    });

    const agrees = (value: unknown): void =>
      assert.deepEqual(
        outcome(() => ours.parse(value)),
        outcome(() => theirs.parse(value)),
      );

    it(`${name}: agrees with a schema library wherever a peer puts what does not belong there`, () => {
      for (const sample of samples)
        for (const path of paths(sample))
          for (const by of [...HOSTILE, ...longer(memberAt(sample, path))])
            agrees(changed(sample, path, () => by));
    });

    it(`${name}: agrees with a schema library on any JSON`, () => {
      const any = fc.constantFrom(...samples).chain((sample) =>
        fc.record({
          sample: fc.constant(sample),
          path: fc.constantFrom(...paths(sample)),
          by: fc.jsonValue({ maxDepth: 2 }),
        }),
      );
      fc.assert(
        fc.property(any, ({ sample, path, by }) => agrees(changed(sample, path, () => by))),
        { numRuns: 200 },
      );
    });
  }

  it("an error names the member", () => {
    const shape = s.object({ a: s.list(s.object({ b: s.integer({ min: 1 }) }), { max: 2 }) });
    assert.throws(() => shape.parse({ a: [{ b: 1 }, { b: 0 }] }), {
      code: "ERR_BAD_VALUE",
      message: /a\[1\]\.b/,
    });
    assert.throws(() => shape.parse([]), { code: "ERR_BAD_VALUE", message: /no object/ });
  });

  it("a tag that every object inherits is no variant", () => {
    for (const kind of ["constructor", "toString", "__proto__"])
      assert.throws(() => ListenMetadata.parse({ kind, v: 1, token: TOKEN }), WireError);
  });
});
