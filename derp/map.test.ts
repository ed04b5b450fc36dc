import assert from "node:assert/strict";
import { chooseHome, nodeAddress, nodeUrl, withAccessUrl } from "./client/nodes.ts";
import { DerpMap, embeddedRelayMap } from "./map.ts";

const node = (Name: string, RegionID: number, more = {}) => ({
  Name,
  RegionID,
  HostName: "relay.test",
  ...more,
});
const region = (RegionID: number, Nodes: object[], more = {}) => ({
  RegionID,
  RegionCode: `r${RegionID}`,
  Nodes,
  ...more,
});
const mapOf = (...regions: { RegionID: number }[]) => ({
  Regions: Object.fromEntries(regions.map((one) => [String(one.RegionID), one])),
});
const parse = (input: unknown): DerpMap => DerpMap.parse(input);

describe("relay map", () => {
  it("of a control plane alone is region 999 at its access URL", () => {
    const map = embeddedRelayMap("http://dev.test:3000");
    assert.deepEqual(parse(map), map);
    assert.deepEqual(map.Regions[999], {
      EmbeddedRelay: true,
      RegionID: 999,
      RegionCode: "coder",
      RegionName: "Coder Embedded Relay",
      Nodes: [
        { Name: "999b", RegionID: 999, HostName: "dev.test", DERPPort: 3000, STUNPort: -1, ForceHTTP: true },
      ],
    });
    assert.equal(nodeUrl(map.Regions[999].Nodes[0]).href, "http://dev.test:3000/derp");
    assert.equal(
      nodeUrl(embeddedRelayMap("https://dev.test").Regions[999].Nodes[0]).href,
      "https://dev.test/derp",
    );
    assert.equal(
      nodeUrl(embeddedRelayMap("http://[::1]:80").Regions[999].Nodes[0]).href,
      "http://[::1]/derp",
    );
  });

  it("fills in what other producers leave out, and drops what it doesn't know", () => {
    const map = parse({ ...mapOf(region(1, [node("1a", 1, { Future: 1 })])), Later: true });
    assert.equal(map.Regions[1].EmbeddedRelay, false);
    assert.equal(map.Regions[1].RegionName, "");
    assert.deepEqual(map.Regions[1].Nodes, [node("1a", 1)]);
  });

  for (const [what, input, message] of [
    ["a region under another id", { Regions: { 2: region(1, [node("1a", 1)]) } }, /listed as 2/],
    ["a node of another region", mapOf(region(1, [node("1a", 2)])), /stands in region 1/],
    ["a node name used twice", mapOf(region(1, [node("a", 1)]), region(2, [node("a", 2)])), /used twice/],
    ["no relay at all", mapOf(region(1, [node("1s", 1, { STUNOnly: true })])), /no region has a relay/],
    ["no nodes", mapOf(region(1, null as unknown as object[])), /no region has a relay/],
    ["a port out of range", mapOf(region(1, [node("1a", 1, { DERPPort: 65_536 })])), /65535/],
    ["region 0", mapOf(region(0, [node("0a", 0)])), /Regions/],
    ["an empty host name", mapOf(region(1, [node("1a", 1, { HostName: "" })])), /HostName/],
  ] as const)
    it(`refuses ${what}`, () => {
      const result = DerpMap.safeParse(input);
      assert.equal(result.success, false);
      assert.match(JSON.stringify(result.error?.issues), message);
    });

  it("a literal address is used, any other text switches the family off", () => {
    assert.equal(nodeAddress(node("a", 1, { IPv4: "192.0.2.1", IPv6: "2001:db8::1" })), "192.0.2.1");
    assert.equal(nodeAddress(node("a", 1, { IPv4: "none", IPv6: "2001:db8::1" })), "2001:db8::1");
    assert.equal(nodeAddress(node("a", 1, { IPv4: "", IPv6: "none" })), undefined);
  });

  it("the control plane's own relay is dialled where the control plane is", () => {
    const map = parse(
      mapOf(region(1, [node("1a", 1)]), { ...embeddedRelayMap("https://a.test").Regions[999] }),
    );
    const seen = withAccessUrl(map, "http://10.0.0.7:8080/");
    assert.equal(nodeUrl(seen.Regions[999].Nodes[0]).href, "http://10.0.0.7:8080/derp");
    assert.equal(nodeUrl(seen.Regions[1].Nodes[0]).href, "https://relay.test/derp");
    assert.equal(nodeUrl(map.Regions[999].Nodes[0]).href, "https://a.test/derp");
  });

  it("home stays while eligible, else is the embedded relay, else the lowest id that has one", () => {
    const stunOnly = region(1, [node("1s", 1, { STUNOnly: true })]);
    const avoided = region(2, [node("2a", 2)], { Avoid: true });
    const plain = region(3, [node("3a", 3)]);
    const never = region(4, [node("4a", 4)], { NoMeasureNoHome: true });
    const embedded = embeddedRelayMap("http://a.test").Regions[999];
    assert.equal(chooseHome(parse(mapOf(stunOnly, avoided, plain, never))), 3);
    assert.equal(chooseHome(parse(mapOf(stunOnly, avoided, plain, never)), 2), 2);
    assert.equal(chooseHome(parse(mapOf(stunOnly, avoided, plain, never)), 4), 3);
    assert.equal(chooseHome(parse(mapOf(plain, embedded))), 999);
    assert.equal(chooseHome(parse(mapOf(avoided, never))), 2);
    assert.equal(chooseHome(parse(mapOf(never))), 4);
  });
});

describe("relay map of a server", () => {
  it("names the relay's own port first, and its key only if told to", () => {
    const publicKey = new Uint8Array(32).fill(7);
    const { Nodes } = embeddedRelayMap("http://dev.test:3000", { relayPort: 8443, publicKey }).Regions[999];
    assert.deepEqual(
      Nodes.map((one) => [one.Name, one.DERPPort, one.ForceHTTP, one.OwnPort, one.PublicKey]),
      [
        ["999a", 8443, false, true, "07".repeat(32)],
        ["999b", 3000, true, undefined, "07".repeat(32)],
      ],
    );
    const [plain] = embeddedRelayMap("http://dev.test:3000").Regions[999].Nodes;
    assert.equal("PublicKey" in plain, false);
    assert.deepEqual(DerpMap.parse(embeddedRelayMap("http://dev.test")), embeddedRelayMap("http://dev.test"));
  });
});
