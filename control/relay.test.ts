import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import pino from "pino";
import type { DerpMap } from "../derp/map.ts";
import { type RelayConfig, type RelayServices, startMetricsListener, startRelayServices } from "./relay.ts";

const logger = pino({ level: "silent" });
const elsewhere = (id: number): DerpMap => ({
  Regions: {
    [id]: {
      EmbeddedRelay: false,
      RegionID: id,
      RegionCode: "far",
      RegionName: "Far",
      Nodes: [{ Name: `${id}a`, RegionID: id, HostName: "relay.example.com" }],
    },
  },
});

describe("relay of a server", () => {
  let folder: string;
  let services: RelayServices | undefined;
  let web: Server | undefined;
  const start = async (config: Partial<RelayConfig> = {}): Promise<RelayServices> => {
    services = await startRelayServices(
      { isEnabled: true, admission: "open", process: "shared", ...config },
      logger,
    );
    return services;
  };
  const file = (name: string, value: unknown): string => {
    const at = path.join(folder, name);
    writeFileSync(at, typeof value === "string" ? value : JSON.stringify(value));
    return at;
  };
  beforeEach(() => {
    folder = mkdtempSync(path.join(tmpdir(), "relay-config-"));
  });
  afterEach(async () => {
    await services?.stop();
    services = undefined;
    web?.close();
    web?.closeAllConnections();
    web = undefined;
    rmSync(folder, { recursive: true });
  });

  it("names its region, its STUN port and other STUN servers in the map, for http: and https:", async () => {
    const it = await start({
      regionId: 950,
      regionCode: "home",
      regionName: "Home",
      stun: { host: "127.0.0.1", port: 0 },
      stunAddresses: ["stun.example.com:19302", "[2001:db8::1]:3478"],
    });
    const { Regions } = it.relayMap("https://dev.test");
    assert.deepEqual(Object.keys(Regions), ["950", "951", "952"]);
    const [node] = Regions[950].Nodes;
    assert.deepEqual([node.HostName, node.DERPPort, node.ForceHTTP], ["dev.test", 443, false]);
    assert.ok(node.STUNPort! > 0);
    assert.deepEqual([Regions[950].RegionCode, Regions[950].RegionName], ["home", "Home"]);
    const [v6] = Regions[952].Nodes;
    assert.deepEqual([v6.HostName, v6.STUNPort, v6.STUNOnly], ["2001:db8::1", 3478, true]);
    assert.equal(it.relayMap("http://dev.test:3000").Regions[950].Nodes[0].ForceHTTP, true);
  });

  it("blocked direct connections leave no STUN in the map", async () => {
    const it = await start({
      isDirectBlocked: true,
      stun: { host: "127.0.0.1", port: 0 },
      stunAddresses: ["stun.example.com:19302"],
    });
    const { Regions } = it.relayMap("https://dev.test");
    assert.deepEqual(Object.keys(Regions), ["999"]);
    assert.equal(Regions[999].Nodes[0].STUNPort, -1);
  });

  it("adds the regions of a file, or has them alone", async () => {
    const mapPath = file("map.json", elsewhere(7));
    assert.deepEqual(Object.keys((await start({ mapPath })).relayMap("http://a.test").Regions), ["7", "999"]);
    await services?.stop();
    const alone = await start({ mapPath, isEnabled: false });
    assert.deepEqual(Object.keys(alone.relayMap("http://a.test").Regions), ["7"]);
  });

  it("adds the regions at a URL, and says what is wrong with one", async () => {
    const pages: Record<string, [number, string]> = {
      "/map": [200, JSON.stringify(elsewhere(7))],
      "/gone": [404, ""],
      "/huge": [200, " ".repeat((1 << 20) + 1)],
    };
    web = createServer((req, res) => {
      const [status, body] = pages[req.url!];
      res.writeHead(status).end(body);
    });
    web.listen(0, "127.0.0.1");
    await once(web, "listening");
    const url = `http://127.0.0.1:${(web.address() as AddressInfo).port}`;
    const it = await start({ mapUrl: `${url}/map` });
    assert.ok(it.relayMap("http://a.test").Regions[7]);
    await assert.rejects(start({ mapUrl: `${url}/gone` }), {
      code: "ERR_RELAY_CONFIG",
      message: /status 404/,
    });
    await assert.rejects(start({ mapUrl: `${url}/huge` }), {
      code: "ERR_RELAY_CONFIG",
      message: /more than/,
    });
  });

  for (const [what, config, problem] of [
    ["no relay at all", { isEnabled: false }, /--derp-config-url/],
    ["a map that is missing", { mapPath: "/nowhere/map.json" }, /\/nowhere\/map\.json/],
    ["two maps", { mapPath: "/a", mapUrl: "http://b.test" }, /not both/],
    ["rates that are missing", { rateConfigPath: "/nowhere/rates.json" }, /rates\.json/],
  ] as const)
    it(`refuses ${what}, and says so`, () =>
      assert.rejects(start(config), { code: "ERR_RELAY_CONFIG", message: problem }));

  it("refuses a region of its own id, and says what to change", () =>
    assert.rejects(start({ mapPath: file("map.json", elsewhere(999)) }), {
      code: "ERR_RELAY_CONFIG",
      message: /--derp-server-region-id/,
    }));

  it("reads rates again, and keeps the old ones when the file is broken", async () => {
    const rateConfigPath = file("rates.json", { PerClientRateLimitBytesPerSec: 5 });
    const it = await start({ rateConfigPath });
    it.makeRelay(() => []);
    file("rates.json", "{");
    it.reload();
    file("rates.json", {});
    it.reload();
  });

  it("serves what it counts as text, at /metrics alone", async () => {
    const it = await start({ stun: { host: "127.0.0.1", port: 0 } });
    it.makeRelay(() => []);
    const listener = await startMetricsListener({ host: "127.0.0.1", port: 0 }, it.metrics);
    const url = `http://127.0.0.1:${listener.port}`;
    const response = await fetch(`${url}/metrics`);
    assert.match(response.headers.get("content-type")!, /version=0\.0\.4/);
    const text = await response.text();
    for (const name of ["gauge_current_connections 0", "accepts 0", "stun_answered 0"])
      assert.match(text, new RegExp(`^coder_derp_${name}$`, "m"));
    assert.equal((await fetch(url)).status, 404);
    await assert.rejects(startMetricsListener({ host: "127.0.0.1", port: listener.port }, it.metrics), {
      code: "ERR_RELAY_CONFIG",
      message: /--prometheus-address/,
    });
    await listener.close();
  });
});
