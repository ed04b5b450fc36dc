import assert from "node:assert/strict";
import { createPublicKey, verify } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { HOST_KEY_FILE, knownHostsLine, loadHostKey } from "./hostkey.ts";

describe("the host key", () => {
  let dir = "";
  beforeEach(() => {
    dir = fs.mkdtempSync(path.join(os.tmpdir(), "hostkey-"));
  });
  afterEach(() => fs.rmSync(dir, { recursive: true, force: true }));

  it("is made once, for its owner alone, and stays", () => {
    const file = path.join(dir, "new", HOST_KEY_FILE);
    const first = loadHostKey(file);
    assert.equal(fs.statSync(file).mode & 0o777, 0o600);
    assert.equal(fs.statSync(path.dirname(file)).mode & 0o777, 0o700);
    assert.deepEqual(fs.readdirSync(path.dirname(file)), [HOST_KEY_FILE]);
    assert.deepEqual(loadHostKey(file).getPublicSSH(), first.getPublicSSH());
  });

  it("signs as its public key, in SSH's form, says", () => {
    const key = loadHostKey(path.join(dir, HOST_KEY_FILE));
    const blob = key.getPublicSSH();
    assert.equal(blob.subarray(0, 19).toString("latin1"), "\0\0\0\x0bssh-ed25519\0\0\0\x20");
    assert.equal(blob.length, 51);
    const x = blob.subarray(19).toString("base64url");
    const publicKey = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
    const data = Buffer.from("exchange hash");
    assert.ok(verify(null, data, publicKey, key.sign(data)));
    assert.equal(knownHostsLine("ws", key), `ws ssh-ed25519 ${blob.toString("base64")}\n`);
  });

  it("is refused, not replaced, when the file is damaged", () => {
    const file = path.join(dir, HOST_KEY_FILE);
    fs.writeFileSync(file, "damaged");
    assert.throws(() => loadHostKey(file), { code: "ERR_HOST_KEY" });
    assert.equal(fs.readFileSync(file, "utf8"), "damaged");
  });
});
