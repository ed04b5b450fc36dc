// Helpers of the relay client's tests: relays on loopback, maps of them, and nodes that use them.
import type { DerpMapLike, RelayPacket } from "../../mesh/node/relay.ts";
import { keyPair } from "../box.ts";
import { Inbox, startRelay, type TestRelay } from "../testing.ts";
import { RelayClient, type RelayClientOptions } from "./regions.ts";

export interface LabNode {
  relay: RelayClient;
  key: Uint8Array;
  packets: Inbox<RelayPacket>;
  gone: Inbox<{ peer: Uint8Array; region: number; reason: number }>;
  /** "1 up", "1 down" in order. */
  states: string[];
}

export class RegionsLab {
  #relays: TestRelay[] = [];
  #nodes: LabNode[] = [];
  #others: (() => Promise<unknown>)[] = [];

  start = async (port = 0, options: Parameters<typeof startRelay>[0] = {}): Promise<TestRelay> => {
    const relay = await startRelay(options, port);
    this.#relays.push(relay);
    return relay;
  };

  /** Regions 1, 2, ... with a node per port. */
  mapOf = (...ports: (number | number[])[]): DerpMapLike => ({
    Regions: Object.fromEntries(
      ports.map((given, i) => [
        String(i + 1),
        {
          RegionID: i + 1,
          RegionCode: `r${i + 1}`,
          RegionName: "",
          Nodes: [given].flat().map((port, n) => ({
            Name: `${i + 1}${"abc"[n]}`,
            RegionID: i + 1,
            HostName: "127.0.0.1",
            DERPPort: port,
            STUNPort: -1,
            ForceHTTP: true,
          })),
        },
      ]),
    ),
  });

  join = (map: DerpMapLike, options: Partial<RelayClientOptions> = {}): LabNode => {
    const keys = keyPair();
    const node: LabNode = {
      relay: new RelayClient({ privateKey: keys.privateKey, random: () => 0.5, ...options }),
      key: keys.publicKey,
      packets: new Inbox(),
      gone: new Inbox(),
      states: [],
    };
    node.relay.onPacket = ({ src, region, data }) =>
      node.packets.push({ src: src.slice(), region, data: data.slice() }); // they are only lent
    node.relay.onPeerGone = (peer, region, reason) => node.gone.push({ peer, region, reason });
    node.relay.onState = ({ region, connected }) =>
      node.states.push(`${region} ${connected ? "up" : "down"}`);
    node.relay.setMap(map);
    this.#nodes.push(node);
    return node;
  };

  /** Closed after the nodes. */
  also(close: () => Promise<unknown>): void {
    this.#others.push(close);
  }

  async close(): Promise<void> {
    await Promise.all(this.#nodes.splice(0).map((node) => node.relay.close()));
    await Promise.all(this.#others.splice(0).map((close) => close()));
    await Promise.all(this.#relays.splice(0).map((relay) => relay.close()));
  }
}
