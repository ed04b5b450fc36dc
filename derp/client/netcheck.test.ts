import assert from "node:assert/strict";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { parseStunBindingRequest, stunBindingResponse } from "../../mesh/wire/stun.ts";
import { startRelay, type TestRelay, until } from "../testing.ts";
import {
  MAX_CHECK_MS,
  Netcheck,
  type NetcheckOutput,
  type NetcheckReport,
  type PlanOptions,
  probePlan,
} from "./netcheck.ts";
import { runNetcheck } from "./netcheck-shell.ts";
import type { ClientMap, ClientNode } from "./nodes.ts";

const regionOf = (id: number, nodes: Partial<ClientNode>[] = [{}], more: object = {}) => ({
  RegionID: id,
  RegionCode: `r${id}`,
  RegionName: "",
  Nodes: nodes.map((node, i) => ({
    Name: `${id}${"abc"[i]}`,
    RegionID: id,
    HostName: `r${id}.test`,
    ...node,
  })),
  ...more,
});
const mapOf = (...regions: ReturnType<typeof regionOf>[]): ClientMap => ({
  Regions: Object.fromEntries(regions.map((region) => [String(region.RegionID), region])),
});
const lastOf = (latencies: Record<number, number>, more: Partial<NetcheckReport> = {}): NetcheckReport => ({
  startedAt: 0,
  tookMs: 0,
  full: true,
  udp: true,
  ipv4: true,
  ipv6: false,
  regions: new Map(),
  latencyMs: new Map(Object.entries(latencies).map(([id, ms]) => [Number(id), ms])),
  mappingsV4: new Map(),
  mappingsV6: new Map(),
  mappingVariesByDestIp: false,
  ...more,
});
const planned = (options: Partial<PlanOptions> & { map: ClientMap }): string[] =>
  probePlan({ full: false, hasV4: true, hasV6: false, ...options }).map(
    ({ node, family, atMs }) => `${node.Name} v${family} ${Math.round(atMs)}`,
  );

describe("MakeProbePlan", () => {
  it("full: three probes per family and region, 100 ms apart, rotating through the nodes", () => {
    const map = mapOf(regionOf(1, [{}, {}]), regionOf(2));
    assert.deepEqual(planned({ map, full: true, hasV6: true }).sort(), [
      ...["1a v4 0", "1a v4 200", "1a v6 0", "1a v6 200", "1b v4 100", "1b v6 100"],
      ...["2a v4 0", "2a v4 100", "2a v4 200", "2a v6 0", "2a v6 100", "2a v6 200"],
    ]);
  });

  it("the first check is full whatever is asked", () => {
    const map = mapOf(regionOf(1));
    assert.deepEqual(planned({ map }), planned({ map, full: true }));
  });

  it("regions that are not to be measured, and nodes without STUN or without the family, are left out", () => {
    const map = mapOf(
      regionOf(1, [{}], { NoMeasureNoHome: true }),
      regionOf(2, [{ STUNPort: -1 }]),
      regionOf(3, [{ IPv4: "none" }]),
      regionOf(4, [{ STUNOnly: true }]),
    );
    assert.deepEqual(planned({ map, full: true }), ["4a v4 0", "4a v4 100", "4a v4 200"]);
  });

  it("incremental: the three fastest and the home, more tries for who matters more", () => {
    const map = mapOf(...[1, 2, 3, 4, 5].map((id) => regionOf(id)));
    const last = lastOf({ 1: 50, 2: 10, 3: 20, 4: 30, 5: 90 });
    assert.deepEqual(planned({ map, last, home: 5 }).sort(), [
      "2a v4 0",
      "2a v4 12",
      "3a v4 0",
      "3a v4 24",
      "4a v4 0",
      "5a v4 0",
      "5a v4 108",
      "5a v4 316",
      "5a v4 474",
    ]);
  });

  it("incremental, dual stack: slower regions get one family each, in turn", () => {
    const map = mapOf(...[1, 2, 3].map((id) => regionOf(id)));
    const last = lastOf({ 1: 10, 2: 20, 3: 30 }, { ipv6: true });
    assert.deepEqual(
      planned({ map, last, hasV6: true }).filter((line) => line.startsWith("3")),
      ["3a v4 0"],
    );
  });
});

/** Runs a check on virtual time. `answer`: when and with what a probe or request is answered. */
function simulate(
  options: Partial<PlanOptions> & { map: ClientMap },
  answer: {
    stun?: (
      region: number,
      family: 4 | 6,
      n: number,
    ) => { afterMs: number; address?: string; port?: number } | undefined;
    https?: (region: number) => { afterMs: number; latencyMs?: number } | undefined;
  },
): { report: NetcheckReport; asked: number[]; probes: number } {
  let id = 0;
  const core = new Netcheck(
    { full: true, hasV4: true, hasV6: false, ...options },
    () => new Uint8Array(12).fill(++id),
    0,
  );
  const events: { at: number; run: (now: number) => void }[] = [];
  const asked: number[] = [];
  let probes = 0;
  let now = 0;
  for (let steps = 0; steps < 10_000; steps++) {
    for (const output of core.takeOutputs() as NetcheckOutput[]) {
      if (output.kind === "done") return { report: output.report, asked, probes };
      if (output.kind === "https") {
        asked.push(output.region);
        const reply = answer.https?.(output.region);
        if (reply)
          events.push({
            at: now + reply.afterMs,
            run: (at) => core.onHttps(output.region, reply.latencyMs, at),
          });
        continue;
      }
      const { region, family } = output.probe;
      const reply = answer.stun?.(region, family, probes++);
      const mapped = { address: reply?.address ?? "192.0.2.7", port: reply?.port ?? 4000 };
      if (reply) events.push({ at: now + reply.afterMs, run: (at) => core.onStun(output.txId, mapped, at) });
    }
    events.sort((a, b) => a.at - b.at);
    const timeoutAt = core.nextTimeout() ?? Number.POSITIVE_INFINITY;
    const event = events[0] && events[0].at <= timeoutAt ? events.shift() : undefined;
    now = event ? event.at : timeoutAt;
    assert.ok(Number.isFinite(now) && now <= MAX_CHECK_MS, "ends in time");
    if (event) event.run(now);
    else core.handleTimeout(now);
  }
  throw new Error("the check never ends");
}

describe("net check", () => {
  const three = mapOf(regionOf(1), regionOf(2), regionOf(3));

  it("measures every region by STUN and ends when all have answered", () => {
    const { report, asked, probes } = simulate(
      { map: three },
      { stun: (region) => ({ afterMs: region * 10 }) },
    );
    assert.deepEqual(
      [...report.latencyMs],
      [
        [1, 10],
        [2, 20],
        [3, 30],
      ],
    );
    assert.deepEqual(
      [report.udp, report.ipv4, report.ipv6, report.globalV4],
      [true, true, false, "192.0.2.7:4000"],
    );
    assert.equal(report.mappingVariesByDestIp, false);
    assert.deepEqual(asked, []);
    assert.equal(probes, 3, "a region's probes end at its first answer");
    assert.ok(report.tookMs <= 30);
  });

  it("after three answers it waits for slower regions only twice as long as the slowest took", () => {
    const map = mapOf(regionOf(1), regionOf(2), regionOf(3), regionOf(4), regionOf(5));
    const { report } = simulate(
      { map },
      { stun: (region) => (region === 5 ? undefined : { afterMs: region === 4 ? 80 : 30 }) },
    );
    assert.deepEqual([...report.latencyMs.keys()].sort(), [1, 2, 3, 4]);
    assert.equal(report.tookMs, 90);
  });

  it("MappingVariesByDestIP: true once two servers see different ports, unset below two answers", () => {
    const vary = simulate(
      { map: three },
      { stun: (region) => ({ afterMs: 5, port: region === 2 ? 4001 : 4000 }) },
    );
    assert.equal(vary.report.mappingVariesByDestIp, true);
    assert.equal(vary.report.globalV4, "192.0.2.7:4000");
    assert.equal(vary.report.mappingsV4.get("192.0.2.7:4000"), 2);
    const one = simulate({ map: mapOf(regionOf(1)) }, { stun: () => ({ afterMs: 5 }) });
    assert.equal(one.report.mappingVariesByDestIp, undefined);
  });

  it("WorksWhenUDPBlocked: without an answer regions are asked by HTTPS, and it still ends in time", () => {
    const { report, asked } = simulate(
      { map: three },
      { https: (region) => (region === 3 ? undefined : { afterMs: 200, latencyMs: region * 7 }) },
    );
    assert.deepEqual(asked, [1, 2, 3]);
    assert.deepEqual(
      [...report.latencyMs],
      [
        [1, 7],
        [2, 14],
      ],
    );
    assert.deepEqual([report.udp, report.regions.get(1)], [false, { latencyMs: 7, httpsMs: 7 }]);
    assert.equal(report.tookMs, MAX_CHECK_MS);
  });

  it("a region whose relay has no STUN is asked by HTTPS at once; one with STUN alone never", () => {
    const map = mapOf(regionOf(1, [{ STUNPort: -1 }]), regionOf(2, [{ STUNOnly: true }]));
    const { report, asked } = simulate(
      { map },
      { stun: () => ({ afterMs: 5 }), https: () => ({ afterMs: 40, latencyMs: 12 }) },
    );
    assert.deepEqual(asked, [1]);
    assert.deepEqual([...report.latencyMs].sort(), [
      [1, 12],
      [2, 5],
    ]);
    assert.ok(report.tookMs <= 40);
  });

  it("a forged or repeated answer changes nothing", () => {
    let n = 0;
    const core = new Netcheck(
      { map: three, full: true, hasV4: true, hasV6: false },
      () => new Uint8Array(12).fill(++n),
      0,
    );
    core.onStun(new Uint8Array(12).fill(99), { address: "192.0.2.1", port: 1 }, 1);
    core.onHttps(2, 1, 1);
    for (let i = 0; i < 5; i++) core.onStun(new Uint8Array(12).fill(1), { address: "192.0.2.1", port: 1 }, 1);
    core.handleTimeout(MAX_CHECK_MS);
    const done = core.takeOutputs().at(-1);
    assert.ok(done?.kind === "done");
    assert.deepEqual([...done.report.latencyMs], [[1, 1]]);
    assert.equal(done.report.mappingsV4.get("192.0.2.1:1"), 1);
  });

  describe("on real sockets", () => {
    const stuns: Socket[] = [];
    let relay: TestRelay | undefined;

    afterEach(async () => {
      for (const socket of stuns.splice(0)) {
        socket.close();
        await once(socket, "close");
      }
      await relay?.close();
      relay = undefined;
    });

    const stunServer = async (): Promise<number> => {
      const socket = createSocket("udp4");
      stuns.push(socket);
      socket.on("message", (bytes, from) => {
        const request = parseStunBindingRequest(new Uint8Array(bytes));
        if (request) socket.send(stunBindingResponse(request.txId, from), from.port, from.address);
      });
      socket.bind(0, "127.0.0.1");
      await once(socket, "listening");
      return (socket.address() as AddressInfo).port;
    };

    it("asks STUN servers and relays on loopback, and leaves nothing open", async () => {
      relay = await startRelay();
      const local = { HostName: "127.0.0.1", IPv4: "127.0.0.1", IPv6: "none", ForceHTTP: true };
      const map = mapOf(
        regionOf(1, [{ ...local, STUNPort: await stunServer(), STUNOnly: true }]),
        regionOf(2, [{ ...local, STUNPort: await stunServer(), STUNOnly: true }]),
        regionOf(3, [{ ...local, STUNPort: -1, DERPPort: relay.port }]),
      );
      const report = await runNetcheck({ map, full: true });
      assert.deepEqual([...report.latencyMs.keys()].sort(), [1, 2, 3]);
      assert.equal(report.mappingVariesByDestIp, false);
      assert.match(report.globalV4 ?? "", /^127\.0\.0\.1:\d+$/);
      assert.ok((report.regions.get(3)?.httpsMs ?? 0) > 0);
      const open = (): number => process.getActiveResourcesInfo().filter((name) => name === "UDPWrap").length;
      await until(() => open() === stuns.length);
    });

    it("can be given up", async () => {
      const silent = createSocket("udp4").bind(0, "127.0.0.1");
      stuns.push(silent);
      await once(silent, "listening");
      const node = { HostName: "127.0.0.1", IPv6: "none", STUNPort: silent.address().port, STUNOnly: true };
      const abort = new AbortController();
      const check = runNetcheck({ map: mapOf(regionOf(1, [node])), full: true, signal: abort.signal });
      await once(silent, "message");
      abort.abort();
      await assert.rejects(check, { code: "ERR_RELAY_ABORTED" });
    });
  });
});
