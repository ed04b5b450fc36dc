import { once } from "node:events";
import net, { type AddressInfo, type Socket } from "node:net";

/** A TCP way to the lab's server that can go silent as a network does: nothing arrives, and nobody is told. */
export interface LabProxy {
  url: string;
  /** Connections there are now carry nothing any more; new ones work. */
  freeze(): void;
  close(): Promise<void>;
}

export async function labProxy(port: number): Promise<LabProxy> {
  const sockets = new Set<Socket>();
  const server = net.createServer({ noDelay: true }, (near) => {
    const far = net.connect({ port, host: "127.0.0.1", noDelay: true });
    for (const [from, to] of [
      [near, far],
      [far, near],
    ]) {
      sockets.add(from);
      from.on("error", () => undefined);
      from.on("close", () => {
        sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    freeze() {
      for (const socket of sockets) socket.unpipe().pause();
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
