import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer, type RequestListener, type Server } from "node:http";
import os from "node:os";
import path from "node:path";
import { deflateRawSync } from "node:zlib";
import fc from "fast-check";
import { isAtLeast, type LocateOptions, locateTerraform, parseVersionOutput } from "./binary.ts";
import { TerraformBinaryError, type TerraformBinaryErrorCode } from "./binary-errors.ts";
import { type Release, releasePlatform, TERRAFORM_RELEASE, unpackProgram } from "./binary-fetch.ts";

/** A program that answers `version -json` as terraform does. */
function fakeTerraform(version: string): string {
  return `#!/bin/sh\n[ "$1 $2" = "version -json" ] && echo '{"terraform_version":"${version}"}'\n`;
}

function u16(...values: number[]): Buffer {
  const out = Buffer.alloc(values.length * 2);
  for (const [i, value] of values.entries()) out.writeUInt16LE(value, i * 2);
  return out;
}
function u32(...values: number[]): Buffer {
  const out = Buffer.alloc(values.length * 4);
  for (const [i, value] of values.entries()) out.writeUInt32LE(value, i * 4);
  return out;
}

/** A zip as APPNOTE.TXT describes it: local headers with data, central directory, end record. */
function zip(files: Record<string, string>, { stored = false, lieBytes = 0, comment = "" } = {}): Buffer {
  const locals: Buffer[] = [];
  const central: Buffer[] = [];
  let offset = 0;
  for (const [name, text] of Object.entries(files)) {
    const plain = Buffer.from(text);
    const packed = stored ? plain : deflateRawSync(plain);
    // version, flags, method, time, date | crc, packed, unpacked | name, extra
    const common = Buffer.concat([
      u16(20, 0, stored ? 0 : 8, 0, 0),
      u32(0, packed.length, plain.length + lieBytes),
      u16(name.length, 4),
    ]);
    const local = Buffer.concat([
      Buffer.from("PK\x03\x04"),
      common,
      Buffer.from(name),
      u16(0x7075, 0),
      packed,
    ]);
    central.push(
      Buffer.concat([
        Buffer.from("PK\x01\x02"),
        u16(0x0314),
        common,
        u16(0, 0, 0), // comment, disk, internal attributes
        u32(0o100755 * 65_536, offset),
        Buffer.from(name),
        u16(0x7075, 0),
      ]),
    );
    locals.push(local);
    offset += local.length;
  }
  const directory = Buffer.concat(central);
  const count = central.length;
  const end = [
    Buffer.from("PK\x05\x06"),
    u16(0, 0, count, count),
    u32(directory.length, offset),
    u16(comment.length),
  ];
  return Buffer.concat([...locals, directory, ...end, Buffer.from(comment)]);
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

describe("locating terraform", () => {
  const VERSION = "1.98.7";
  const archive = zip({ "LICENSE.txt": "terms", terraform: fakeTerraform(VERSION) });
  let folder: string;
  let cacheDir: string;
  let server: Server;
  let mirror: string;
  let requests: string[];
  let answer: RequestListener;

  before(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "coder-test-terraform-"));
    server = createServer((request, response) => {
      requests.push(request.url!);
      answer(request, response);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    mirror = `http://127.0.0.1:${(server.address() as { port: number }).port}`;
  });
  after(async () => {
    server.closeAllConnections();
    server.close();
    await rm(folder, { recursive: true, force: true });
  });
  beforeEach(async () => {
    requests = [];
    answer = (_request, response) => response.end(archive);
    cacheDir = await mkdtemp(path.join(folder, "cache-"));
  });

  async function program(text: string, mode = 0o755): Promise<string> {
    const file = path.join(await mkdtemp(path.join(folder, "bin-")), "terraform");
    await writeFile(file, text);
    await chmod(file, mode);
    return file;
  }

  function release(bytes: Uint8Array = archive): Release {
    return { version: VERSION, sha256: { [releasePlatform()]: sha256(bytes) } };
  }

  function locate(env: NodeJS.ProcessEnv, options: Partial<LocateOptions> = {}) {
    const PATH = `${folder}/empty:/usr/bin/nothing`;
    return locateTerraform({
      env: { PATH, CODER_TERRAFORM_MIRROR: mirror, ...env },
      cacheDir,
      fetchAllowed: true,
      release: release(),
      ...options,
    });
  }

  async function refused(
    attempt: Promise<unknown>,
    code: TerraformBinaryErrorCode,
    pattern: RegExp,
  ): Promise<void> {
    await assert.rejects(attempt, (error) => {
      assert.ok(error instanceof TerraformBinaryError, String(error));
      assert.equal(error.code, code);
      assert.match(error.message, pattern);
      return true;
    });
    const left = await readdir(cacheDir, { recursive: true });
    assert.deepEqual(
      left.filter(
        (name) => path.basename(name).startsWith(".new-") || path.basename(name) === "terraform.zip",
      ),
      [],
      "something half-fetched stayed",
    );
  }

  describe("by CODER_TERRAFORM_BIN", () => {
    it("takes it when it is new enough", async () => {
      const file = await program(fakeTerraform("1.5.7"));
      assert.deepEqual(await locate({ CODER_TERRAFORM_BIN: file }), { path: file, version: "1.5.7" });
    });

    it("refuses one too old, even when PATH has a better one", async () => {
      const file = await program(fakeTerraform("1.4.9"));
      const better = path.dirname(await program(fakeTerraform("1.11.4")));
      await refused(
        locate({ CODER_TERRAFORM_BIN: file, PATH: better }),
        "ERR_TERRAFORM_TOO_OLD",
        /is terraform 1\.4\.9\. Install terraform 1\.5\.0 or newer.*CODER_TERRAFORM_BIN/,
      );
    });

    it("says why one can't be used: missing, a folder, not executable, not terraform", async () => {
      const problems: [string, RegExp][] = [
        [path.join(folder, "nowhere"), /names .*nowhere, which can't be found/],
        [folder, /isn't a file/],
        [await program(fakeTerraform("1.11.4"), 0o644), /isn't executable \(chmod \+x /],
        [await program("#!/bin/sh\necho hello\n"), /doesn't answer as terraform does/],
        [await program("#!/bin/sh\nexit 3\n"), /doesn't answer as terraform does/],
      ];
      for (const [file, problem] of problems) {
        await refused(locate({ CODER_TERRAFORM_BIN: file }), "ERR_TERRAFORM_MISSING", problem);
      }
      assert.deepEqual(requests, []);
    });
  });

  describe("on PATH", () => {
    it("takes the first that is new enough, past old and broken ones", async () => {
      const files = [
        await program("not a program"),
        await program(fakeTerraform("1.11.4"), 0o644),
        await program(fakeTerraform("0.14.2")),
        await program(fakeTerraform("1.11.4")),
      ];
      const PATH = ["", ...files.map((file) => path.dirname(file))].join(path.delimiter);
      assert.deepEqual(await locate({ PATH }), { path: files[3], version: "1.11.4" });
    });

    it("hides its own settings and TF_* from the program it asks", async () => {
      const file = await program(
        `#!/bin/sh\n[ -z "$TF_LOG$CODER_X" ] && echo '{"terraform_version":"1.11.4"}'\n`,
      );
      const { version } = await locate({ PATH: path.dirname(file), TF_LOG: "trace", CODER_X: "secret" });
      assert.equal(version, "1.11.4");
    });

    it("says so when there is only an old one and downloads are off", async () => {
      const PATH = path.dirname(await program(fakeTerraform("1.2.3")));
      await refused(
        locate({ PATH }, { fetchAllowed: false }),
        "ERR_TERRAFORM_TOO_OLD",
        /terraform 1\.2\.3\. Install/,
      );
    });

    it("says what to install when there is none and downloads are off", async () => {
      await refused(
        locate({}, { fetchAllowed: false }),
        "ERR_TERRAFORM_MISSING",
        /downloads are switched off\. Install terraform 1\.5\.0.*CODER_TERRAFORM_BIN/,
      );
      assert.deepEqual(requests, []);
    });
  });

  describe("by fetching it", () => {
    it("fetches once, with progress, and uses the copy from then on, also without a network", async () => {
      const progress: string[] = [];
      const found = await locate({}, { onProgress: (line) => progress.push(line) });
      assert.deepEqual(found, {
        path: path.join(cacheDir, "terraform", VERSION, "terraform"),
        version: VERSION,
      });
      assert.equal((await stat(found.path)).mode & 0o100, 0o100);
      assert.deepEqual(requests, [`/terraform/${VERSION}/terraform_${VERSION}_${releasePlatform()}.zip`]);
      assert.match(progress.join("\n"), /Fetching terraform 1\.98\.7 from http:\/\/127/);
      assert.deepEqual(await locate({}, { fetchAllowed: false }), found);
      assert.equal(requests.length, 1);
      assert.deepEqual(await readdir(path.dirname(found.path)), ["terraform"]);
    });

    it("ends well when several fetch at the same moment", async () => {
      const all = await Promise.all([1, 2, 3, 4].map(() => locate({})));
      assert.deepEqual(
        all.map(({ version }) => version),
        [VERSION, VERSION, VERSION, VERSION],
      );
      assert.deepEqual(await readdir(path.dirname(all[0]!.path)), ["terraform"]);
    });

    it("replaces a copy that doesn't run", async () => {
      const file = path.join(cacheDir, "terraform", VERSION, "terraform");
      await mkdir(path.dirname(file), { recursive: true });
      await writeFile(file, "half a program", { mode: 0o755 });
      assert.equal((await locate({})).version, VERSION);
      assert.equal(await readFile(file, "utf8"), fakeTerraform(VERSION));
    });

    it("throws away what has another checksum", async () => {
      const other = zip({ terraform: fakeTerraform("6.6.6") });
      answer = (_request, response) => response.end(other);
      await refused(
        locate({}),
        "ERR_TERRAFORM_CHECKSUM",
        new RegExp(`SHA-256 ${sha256(other)}, expected ${sha256(archive)}.*Install terraform`),
      );
    });

    it("reports a download that breaks off, whether or not its length was announced", async () => {
      answer = (_request, response) => {
        response.writeHead(200, { "content-length": archive.length });
        response.write(archive.subarray(0, 100), () => response.destroy());
      };
      await refused(locate({}), "ERR_TERRAFORM_FETCH", /fetching http.* failed: .*CODER_TERRAFORM_MIRROR/);
      answer = (_request, response) => response.end(archive.subarray(0, 100));
      await refused(locate({}), "ERR_TERRAFORM_CHECKSUM", /isn't the file it should be/);
    });

    it("gives up on one that stops sending", async () => {
      answer = (_request, response) => void response.write(archive.subarray(0, 100));
      await refused(locate({}, { idleTimeoutMs: 100 }), "ERR_TERRAFORM_FETCH", /nothing arrived for 100 ms/);
      answer = () => undefined;
      await refused(locate({}, { idleTimeoutMs: 100 }), "ERR_TERRAFORM_FETCH", /nothing arrived for 100 ms/);
    });

    it("reports what the server answered, an unreachable one, and an address that isn't one", async () => {
      answer = (_request, response) => void response.writeHead(404).end("no such file");
      await refused(locate({}), "ERR_TERRAFORM_FETCH", /answered 404/);
      const cases: [string, RegExp][] = [
        ["http://127.0.0.1:1/", /fetching http:\/\/127\.0\.0\.1:1\/terraform.*failed/],
        ["not an address", /CODER_TERRAFORM_MIRROR isn't an http or https address/],
        ["file:///etc", /CODER_TERRAFORM_MIRROR isn't an http or https address/],
      ];
      for (const [CODER_TERRAFORM_MIRROR, pattern] of cases) {
        await refused(locate({ CODER_TERRAFORM_MIRROR }), "ERR_TERRAFORM_FETCH", pattern);
      }
    });

    it("logs in to a mirror below any path, and shows nobody the password", async () => {
      const logins: (string | undefined)[] = [];
      answer = (request, response) => {
        logins.push(request.headers.authorization);
        response.end(archive);
      };
      const CODER_TERRAFORM_MIRROR = `${mirror.replace("//", "//me:hunter%402@")}/cache/hashicorp/`;
      const progress: string[] = [];
      await locate({ CODER_TERRAFORM_MIRROR }, { onProgress: (line) => progress.push(line) });
      assert.deepEqual(logins, [`Basic ${Buffer.from("me:hunter@2").toString("base64")}`]);
      assert.match(requests[0]!, /^\/cache\/hashicorp\/terraform\/1\.98\.7\//);
      answer = (_request, response) => void response.writeHead(401).end();
      const error: Error = await locate(
        { CODER_TERRAFORM_MIRROR },
        { cacheDir: path.join(cacheDir, "other") },
      ).then(
        () => assert.fail(),
        (reason) => reason,
      );
      assert.match(error.message, /answered 401/);
      assert.doesNotMatch(`${progress.join()}${error.stack}${(error.cause as Error).stack}`, /hunter/);
    });

    it("stops when told to", async () => {
      const abort = new AbortController();
      answer = (_request, response) => {
        response.write(archive.subarray(0, 100));
        abort.abort(new Error("server is stopping"));
      };
      await assert.rejects(locate({}, { signal: abort.signal }), /server is stopping/);
    });

    it("fetches nothing for a platform whose checksum isn't known", async () => {
      await refused(
        locate({}, { release: { version: VERSION, sha256: { plan9_mips: sha256(archive) } } }),
        "ERR_TERRAFORM_MISSING",
        /no checksum is known.*Install terraform/,
      );
      assert.deepEqual(requests, []);
    });

    it("reports a cache folder that can't be made", async () => {
      const file = path.join(cacheDir, "file");
      await writeFile(file, "");
      await refused(
        locate({}, { cacheDir: path.join(file, "below") }),
        "ERR_TERRAFORM_FETCH",
        /can't make the cache/,
      );
    });
  });

  describe("unpacking", () => {
    async function unpack(bytes: Uint8Array): Promise<string> {
      const place = await mkdtemp(path.join(folder, "zip-"));
      await writeFile(path.join(place, "a.zip"), bytes);
      await unpackProgram(path.join(place, "a.zip"), path.join(place, "out"));
      return await readFile(path.join(place, "out"), "utf8");
    }

    it("takes the one entry, deflated or stored, whatever else is in there", async () => {
      const files = { "LICENSE.txt": "terms", terraform: "the program", "terraform.txt": "no" };
      assert.equal(await unpack(zip(files)), "the program");
      assert.equal(await unpack(zip(files, { stored: true })), "the program");
      assert.equal(await unpack(zip(files, { comment: "x".repeat(65_535) })), "the program");
    });

    it("refuses sizes that don't fit, and zips without the program", async () => {
      await assert.rejects(
        unpack(zip({ terraform: "the program" }, { lieBytes: 1 })),
        /smaller than its zip says/,
      );
      await assert.rejects(
        unpack(zip({ terraform: "the program" }, { lieBytes: -1 })),
        /larger than its zip says/,
      );
      await assert.rejects(unpack(zip({ "bin/terraform": "no" })), /holds no terraform/);
      await assert.rejects(unpack(Buffer.from("PK, but no zip")), /isn't a zip/);
      await assert.rejects(unpack(Buffer.alloc(0)), /isn't a zip/);
    });

    it("only ever fails with an error on damaged zips", async () => {
      const good = zip({ terraform: "the program, long enough to be worth packing, packing, packing" });
      await fc.assert(
        fc.asyncProperty(fc.nat(good.length - 1), fc.nat(255), fc.nat(good.length), async (at, byte, cut) => {
          const bad = Buffer.from(good.subarray(0, cut));
          if (at < bad.length) bad[at] = byte;
          await unpack(bad).catch((error: Error) =>
            assert.ok(error instanceof Error && !/assert/i.test(error.name)),
          );
        }),
        { numRuns: 60 },
      );
    });
  });
});

describe("terraform's version", () => {
  it("is read from its JSON, or from an old one's text", () => {
    assert.equal(parseVersionOutput('{"terraform_version":"1.11.4","platform":"linux_amd64"}'), "1.11.4");
    assert.equal(parseVersionOutput("Terraform v0.12.31\n"), "0.12.31");
    for (const text of [
      "",
      "{}",
      "[]",
      "null",
      '{"terraform_version":5}',
      '{"terraform_version":"new"}',
      "hello",
    ]) {
      assert.throws(() => parseVersionOutput(text), Error, text);
    }
  });

  it("compares by number, and a pre-release comes before its release", () => {
    assert.ok(isAtLeast("1.5.0", "1.5.0") && isAtLeast("1.10.0", "1.9.9") && isAtLeast("2.0.0", "1.99.99"));
    assert.ok(!isAtLeast("1.4.99", "1.5.0") && !isAtLeast("0.99.0", "1.0.0"));
    assert.ok(!isAtLeast("1.5.0-rc1", "1.5.0") && isAtLeast("1.6.0-beta2", "1.5.0"));
    assert.ok(!isAtLeast("one", "1.5.0"));
  });

  it("is pinned with a checksum of the right form for each platform", () => {
    assert.ok(isAtLeast(TERRAFORM_RELEASE.version, "1.5.0"));
    const sums = Object.values(TERRAFORM_RELEASE.sha256);
    assert.equal(new Set(sums).size, sums.length);
    for (const sum of sums) assert.match(sum, /^[0-9a-f]{64}$/);
    assert.equal(releasePlatform("linux", "x64"), "linux_amd64");
    assert.equal(releasePlatform("darwin", "arm64"), "darwin_arm64");
    assert.equal(releasePlatform("win32", "ia32"), "windows_386");
  });
});
