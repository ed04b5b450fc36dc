// The socket, spoken to by hand: what a client that is not Terraform, or not well, can do to it.
import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { connect } from "node:net";
import os from "node:os";
import path from "node:path";
import { type RunningProvider, startProvider } from "./index.ts";
import { encodeMsgpack } from "./msgpack.ts";
import * as tf from "./tfplugin5.ts";
import { objectValue } from "./value.ts";

const context = { env: new Map<string, string>(), agentTokens: "keep" as const };

describe("the provider's socket", () => {
  let root = "";
  let provider: RunningProvider;
  const socketOf = (running: RunningProvider): string =>
    JSON.parse(running.reattach)["registry.terraform.io/coder/coder"].Addr.String;
  const open = () => {
    const socket = connect(socketOf(provider));
    return connectHttp2("http://localhost", { createConnection: () => socket });
  };

  before(async () => {
    root = mkdtempSync(path.join(os.tmpdir(), "socket-"));
    chmodSync(root, 0o700);
    provider = await startProvider(context, { socketDir: root });
  });
  after(async () => {
    await provider.close();
    assert.deepEqual(readdirSync(root), ["open"]);
    rmSync(root, { recursive: true, force: true });
  });

  /** One call. @returns its gRPC status and message, and the body without the prefix */
  function call(method: string, body: Uint8Array, client = open()) {
    return new Promise<{ status: number; message: string; body: Buffer }>((resolve, reject) => {
      const stream = client.request({ ":method": "POST", ":path": `/tfplugin5.Provider/${method}` });
      const chunks: Buffer[] = [];
      let headers: Record<string, unknown> = {};
      stream.on("response", (given) => (headers = { ...headers, ...given }));
      stream.on("trailers", (given) => (headers = { ...headers, ...given }));
      stream.on("data", (chunk) => chunks.push(chunk));
      stream.on("error", reject);
      stream.on("close", () => {
        client.close();
        resolve({
          status: Number(headers["grpc-status"]),
          message: decodeURIComponent(String(headers["grpc-message"] ?? "")),
          body: Buffer.concat(chunks).subarray(5),
        });
      });
      stream.end(body);
    });
  }
  const framed = (message: Uint8Array, flag = 0) => {
    const prefix = Buffer.alloc(5, flag);
    prefix.writeUInt32BE(message.length, 1);
    return Buffer.concat([prefix, message]);
  };

  it("tells Terraform where it is, and not to kill us", () => {
    const [[address, plugin]] = Object.entries<Record<string, unknown>>(JSON.parse(provider.reattach));
    assert.equal(address, "registry.terraform.io/coder/coder");
    assert.deepEqual(
      [plugin.Protocol, plugin.ProtocolVersion, plugin.Test, plugin.Pid],
      ["grpc", 5, true, process.pid],
    );
  });

  it("answers a method it lacks as unimplemented", async () => {
    const { status, message } = await call("MoveResourceState", framed(new Uint8Array()));
    assert.deepEqual([status, message], [12, "no method /tfplugin5.Provider/MoveResourceState"]);
  });

  for (const { name, body, status } of [
    { name: "no body", body: new Uint8Array(), status: 3 },
    { name: "a prefix that promises 4 GiB", body: Uint8Array.of(0, 255, 255, 255, 255, 1), status: 3 },
    {
      name: "two messages",
      body: Buffer.concat([framed(new Uint8Array()), framed(new Uint8Array())]),
      status: 3,
    },
    { name: "a compressed message", body: framed(new Uint8Array(), 1), status: 12 },
    { name: "bytes that are no message", body: framed(Uint8Array.of(0x0a, 0xff)), status: 13 },
  ])
    it(`refuses ${name} and lives on`, async () => {
      assert.equal((await call("ValidateResourceTypeConfig", body)).status, status);
      assert.equal((await call("Stop", framed(new Uint8Array()))).status, 0);
    });

  it("hangs up on a client that does not speak HTTP/2, and lives on", async () => {
    const socket = connect(socketOf(provider));
    socket.on("error", () => {});
    const closed = new Promise((resolve) => socket.resume().once("close", resolve));
    socket.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    await closed;
    assert.equal((await call("Stop", framed(new Uint8Array()))).status, 0);
  });

  it("refuses a type it does not have, and a value that is not of the type, in words", async () => {
    const validate = (typeName: string, msgpack: Uint8Array) =>
      call(
        "ValidateResourceTypeConfig",
        framed(tf.ValidateRequest.encode({ typeName, config: { msgpack } })),
      );
    assert.match((await validate("coder_toaster", Uint8Array.of(0xc0))).message, /no coder_toaster/);
    assert.match((await validate("coder_env", Uint8Array.of(0x80))).message, /attribute id is missing/);
  });

  it("takes a value as JSON where there is no MessagePack", async () => {
    const json = new TextEncoder().encode('{"agent_id":"a","name":"9"}');
    const request = tf.ValidateRequest.encode({ typeName: "coder_env", config: { json } });
    const { body } = await call("ValidateResourceTypeConfig", framed(request));
    const { diagnostics } = tf.DiagnosticsResponse.decode(body);
    assert.deepEqual(
      diagnostics.map(({ summary }) => summary),
      ['Invalid value for "name"'],
    );
  });

  it("keeps what one connection configured from another", async () => {
    const type = ["object", { url: "string" }] as ["object", { url: "string" }];
    const configure = (url: string) =>
      framed(
        tf.ConfigureRequest.encode({ config: { msgpack: encodeMsgpack(objectValue([["url", url]]), type) } }),
      );
    const clients = [open(), open()];
    for (const [i, client] of clients.entries()) {
      const stream = client.request({ ":method": "POST", ":path": "/tfplugin5.Provider/Configure" });
      stream.end(configure(`http://host${i}.example`));
      await new Promise((resolve) => stream.resume().on("close", resolve));
    }
    for (const [i, client] of clients.entries()) {
      const request = tf.ReadDataSourceRequest.encode({ typeName: "coder_workspace" });
      const { body } = await call("ReadDataSource", framed(request), client);
      assert.ok(body.includes(`http://host${i}.example`));
    }
  });

  it("can't be imported from", async () => {
    const { body } = await call(
      "ImportResourceState",
      framed(tf.ImportRequest.encode({ typeName: "coder_app", id: "x" })),
    );
    assert.match(tf.ImportResponse.decode(body).diagnostics[0].summary, /coder_app can't be imported/);
  });

  it("is not opened in a directory others can enter, nor at a path too long for a socket", async () => {
    const open = path.join(root, "open");
    mkdirSync(open);
    chmodSync(open, 0o755);
    const refused = { code: "ERR_PROVIDER_SOCKET" };
    await assert.rejects(startProvider(context, { socketDir: open }), { ...refused, message: /mode 0700/ });
    await assert.rejects(startProvider(context, { socketDir: path.join(root, "x".repeat(100)) }), {
      ...refused,
      message: /107 is the most|103 is the most/,
    });
  });

  it("closes while a client hangs on it", async () => {
    const other = await startProvider(context, { socketDir: root });
    const socket = connect(socketOf(other));
    const client = connectHttp2("http://localhost", { createConnection: () => socket });
    client.on("error", () => {});
    const stream = client.request({ ":method": "POST", ":path": "/tfplugin5.Provider/Stop" });
    stream.on("error", () => {});
    await new Promise((resolve) => client.once("remoteSettings", resolve));
    const closed = new Promise((resolve) => client.once("close", resolve));
    const began = performance.now();
    await other.close();
    await closed;
    assert.ok(performance.now() - began < 900, "it did not wait for the client");
  });
});
