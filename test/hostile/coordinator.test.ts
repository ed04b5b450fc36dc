// A coordinator issues permissions and is trusted for that. What it can't do: pass off a key or a grant that the
// deployment has not signed, end a process or fill its memory, or reach into a session by nonsense.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type { MeshStream } from "../../mesh/node/node.ts";
import { toBase64 } from "../../mesh/wire/bytes.ts";
import { needsProc } from "../skip.ts";
import type { Lie } from "./server.ts";
import { costOf, MIB, roundTrip, World } from "./world.ts";

describe("a coordinator that lies", function () {
  this.timeout(60_000);
  let world: World;
  let stream: MeshStream;

  before(async function () {
    needsProc(this);
    world = await World.begin();
    stream = await world.echo();
  });
  afterEach(() => roundTrip(stream));
  after(() => world?.end());

  const lies: [Lie, RegExp][] = [
    ["foreign record", /^ERR_STATEMENT_SIGNATURE|^ERR_STATEMENT_UNKNOWN_KEY/],
    ["another agent's record", /^ERR_BAD_VALUE/],
    ["expired record", /^ERR_STATEMENT_EXPIRED/],
    ["another node's grant", /^ERR_SESSION_CLOSED: you have no permission/],
    ["expired grant", /^ERR_SESSION_CLOSED: the permission has expired/],
    ["foreign grant", /^ERR_SESSION_CLOSED: you have no permission/],
  ];
  for (const [lie, error] of lies)
    it(`${lie}: opens nothing, and says so`, async () => {
      const client = await world.client();
      await world.server.call("lie", lie);
      try {
        const failed = await client.connect(world.agentId).then(
          () => assert.fail("connected"),
          (cause: Error & { code?: string }) => `${cause.code}: ${cause.message}`,
        );
        assert.match(failed, error);
      } finally {
        await world.server.call("lie", undefined);
      }
    });

  it("answers to questions nobody asked are answers to nobody", async () => {
    const client = await world.client();
    await world.server.call("lie", "wrong request");
    await assert.rejects(client.connect(world.agentId, { signal: AbortSignal.timeout(300) }));
    await world.server.call("lie", undefined);
    await client.connect(world.agentId);
  });

  it("endless messages cost time and no memory, and a live session goes on beneath them", async () => {
    const id = randomUUID();
    const statement = toBase64(new Uint8Array(300).fill(1));
    const grants = Array.from({ length: 4_096 }, () => randomUUID());
    const { bytes } = await costOf(world.agent, async () => {
      await world.server.call("say", { type: "record-gone", agentId: id }, 2_000);
      await world.server.call("say", { type: "grant", request: 77, grant: statement }, 1_000);
      await world.server.call("say", { type: "revoke", grants }, 5);
      await world.server.call(
        "say",
        { type: "relay-map", map: { Regions: {} }, unknown: "x".repeat(1_000) },
        0,
      );
      await roundTrip(stream);
    });
    assert.ok(bytes < 96 * MIB, `the agent grew by ${(bytes / MIB).toFixed(0)} MiB`);
  });

  for (const [what, call, args] of [
    ["a message above 256 KiB", "sayHuge", [300_000]],
    ["a record that is none", "say", [{ type: "record", agentId: randomUUID(), record: "AAAA" }, 1]],
    ["no message at all", "say", [[1, 2, 3], 1]],
  ] as const)
    it(`${what}: the node hangs up and comes back; a live session goes on`, async () => {
      await world.server.call(call, ...args);
      await roundTrip(stream);
      await world.echo();
    });

  // Last, since they take what the others need.
  it("other signing keys: live sessions go on, and nobody new comes in", async () => {
    const client = await world.client();
    await world.server.call("otherKeys");
    await roundTrip(stream);
    await assert.rejects(client.connect(world.agentId), /permission|signed|key/);
  });

  it("revokes everything: that it may, and the sessions are told why", async () => {
    const closed = new Promise<Error>((resolve) => stream.once("error", resolve));
    await world.server.call("revokeAll");
    assert.match((await closed).message, /access was revoked/);
    ({ stream } = await fresh());
  });

  async function fresh(): Promise<{ stream: MeshStream }> {
    await world.end();
    world = await World.begin();
    return { stream: await world.echo() };
  }
});
