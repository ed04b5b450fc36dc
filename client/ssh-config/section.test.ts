import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import fc from "fast-check";
import { parseDeploymentSsh } from "./deployment.ts";
import { unifiedDiff } from "./diff.ts";
import {
  findSection,
  recordedOptions,
  renderSection,
  replaceSection,
  type SectionOptions,
} from "./section.ts";

const OPTIONS: SectionOptions = {
  wait: "auto",
  disableAutostart: false,
  sshHostPrefix: "coder.",
  hostnameSuffix: "coder",
  forceUnixFilePaths: false,
  coderBinaryPath: "",
  skipProxyCommand: false,
  sshOptions: [],
};
const PATHS = {
  program: ["/usr/bin/node", "/opt/coder/dist/coder.js", "--global-config", "/home/ada/.config/coderv2"],
  knownHosts: "/home/ada/.config/coderv2/ssh_known_hosts",
  isWindows: false,
};
const render = (options: Partial<SectionOptions> = {}, paths: Partial<typeof PATHS> = {}) =>
  renderSection({ ...OPTIONS, ...options }, { ...PATHS, ...paths });
const code = (expected: string) => (error: { code?: string }) => error.code === expected;

describe("coder's section of an SSH configuration", () => {
  it("reads as published", () => {
    assert.equal(
      render({ sshOptions: ["ForwardAgent=yes"] }),
      `# ------------START-CODER-----------
# This section is managed by coder: changes to it are lost when \`coder config-ssh\` runs again.
# \`coder config-ssh --remove\` takes it out.
#
# Last config-ssh options:
# :wait=auto
# :ssh-host-prefix=coder.
# :hostname-suffix=coder
# :ssh-option=ForwardAgent=yes
#
Host coder.* *.coder !-* "!*'*"
    ForwardAgent yes
    ConnectTimeout 0
    HostKeyAlias coder-workspaces
    UserKnownHostsFile /home/ada/.config/coderv2/ssh_known_hosts
    StrictHostKeyChecking yes
    ProxyCommand /usr/bin/node /opt/coder/dist/coder.js --global-config /home/ada/.config/coderv2 ssh --stdio --ssh-host-prefix coder. --hostname-suffix coder '%h'
# ------------END-CODER------------
`,
    );
  });

  it("is put in, replaced and taken out without touching anything else", () => {
    // Markers of other programs, comments, CRLF, bytes that are no UTF-8, with and without an end of the last line.
    const anyLine = fc.oneof(
      fc.constantFrom("", "# --- START CODER VSCODE x", "Host foo", "\tUser bar", "Include other", "# ----"),
      fc.string({ unit: fc.integer({ min: 32, max: 255 }).map((n) => String.fromCharCode(n)) }),
    );
    const anyText = fc
      .tuple(fc.array(anyLine, { maxLength: 8 }), fc.constantFrom("\n", "\r\n"), fc.boolean())
      .map(([lines, eol, isEnded]) => lines.join(eol) + (isEnded && lines.length > 0 ? eol : ""));
    fc.assert(
      fc.property(anyText, anyText, (text, more) => {
        const once = replaceSection(text, render());
        assert.ok(once.startsWith(text));
        assert.equal(replaceSection(once, render()), once);
        const other = replaceSection(once, render({ wait: "yes", sshOptions: ["User ada", "Port 22"] }));
        assert.notEqual(other, once);
        assert.equal(replaceSection(other, render()), once);
        assert.equal(replaceSection(once, undefined), text);
        // What others put behind it stays where it is.
        const followed = once + more;
        const found = findSection(followed);
        assert.equal(found?.after, more);
        assert.ok(replaceSection(followed, undefined).endsWith(more));
      }),
    );
  });

  it("leaves a carriage return at the end of the file where it was", () => {
    for (const text of ["Host a\r", "\r", "Host a\r\nUser b\r"])
      assert.equal(replaceSection(replaceSection(text, render()), undefined), text);
  });

  it("takes the line ends of the file it is in", () => {
    const text = replaceSection("Host a\r\n    User b\r\n", render());
    assert.equal(text.replace(/\r\n/g, "").includes("\n"), false);
    assert.deepEqual(recordedOptions(findSection(text)?.section ?? "", OPTIONS), OPTIONS);
  });

  it("refuses markers that are not one pair", () => {
    const section = render();
    for (const text of [
      section + section,
      section.replace("# ------------END-CODER------------\n", ""),
      section.replace("# ------------START-CODER-----------\n", ""),
      section.split("\n").reverse().join("\n"),
    ])
      assert.throws(() => findSection(text), code("ERR_SSH_CONFIG_MARKERS"));
  });

  it("records its options so that they can be read again", () => {
    const anyOptions = fc.record({
      wait: fc.constantFrom("yes" as const, "no" as const, "auto" as const),
      disableAutostart: fc.boolean(),
      forceUnixFilePaths: fc.boolean(),
      skipProxyCommand: fc.boolean(),
      sshHostPrefix: fc.constantFrom("coder.", "ws-", ""),
      hostnameSuffix: fc.constantFrom("coder", "dev.example"),
      coderBinaryPath: fc.constantFrom("", "/opt/my coder", "/opt/ünï"),
      sshOptions: fc.array(fc.constantFrom("ForwardAgent=yes", "SetEnv A=b c", "User ädä"), { maxLength: 3 }),
    });
    fc.assert(
      fc.property(anyOptions, (options) =>
        assert.deepEqual(recordedOptions(renderSection(options, PATHS), OPTIONS), { ...options }),
      ),
    );
  });

  it("lets the user's options win, and drops those of ours that they replace", () => {
    const section = render({ sshOptions: ["stricthostkeychecking = no"], serverOptions: ["User ada"] });
    assert.match(section, /\n {4}stricthostkeychecking no\n {4}User ada\n/);
    assert.doesNotMatch(section, /StrictHostKeyChecking yes/);
    assert.doesNotMatch(section, /# :.*User/);
  });

  it("quotes paths for ssh and for shells", () => {
    const program = ["C:\\Program Files\\nodejs\\node.exe", "/opt/100%/coder.js"];
    const section = render({}, { program, knownHosts: "/home/ada b/50%/known" });
    assert.match(
      section,
      /ProxyCommand "C:\\Program Files\\nodejs\\node\.exe" \/opt\/100%%\/coder\.js ssh --stdio/,
    );
    assert.match(section, /UserKnownHostsFile "\/home\/ada b\/50%%\/known"/);
    assert.match(render({ forceUnixFilePaths: true }, { program }), /"C:\/Program Files\/nodejs\/node\.exe"/);
  });

  it("hands no host name to a shell that is more than a name", function () {
    const hosts = ["coder.a'b", "-oX.coder", "coder.a b", "coder.a&b", "coder.a|b", "coder.$a", "coder.`a`"];
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), "section-"));
    try {
      for (const isWindows of [false, true]) {
        const file = path.join(dir, String(isWindows));
        fs.writeFileSync(file, render({}, { isWindows }), { mode: 0o600 });
        const says = (host: string) =>
          spawnSync("ssh", ["-G", "-F", file, "--", host], { encoding: "utf8" }).stdout ?? "";
        if (says("coder.dev") === "") {
          console.log("skipped: there is no ssh here");
          this.skip();
        }
        for (const host of ["coder.dev", "ada--dev.coder", "coder.dev.main"])
          assert.match(says(host), isWindows ? /^proxycommand .* "%h"$/m : /^proxycommand .* '%h'$/m);
        // On POSIX single quotes hold all but a single quote. What ssh refuses by itself is as well.
        for (const host of hosts)
          if (isWindows || /^-|'/.test(host)) assert.doesNotMatch(says(host), /^proxycommand/m, host);
      }
    } finally {
      fs.rmSync(dir, { recursive: true, force: true });
    }
  });

  it("refuses what a line can't hold: nothing can break out of its section", () => {
    for (const program of [['/a"b'], ["/a`b"], ["/a$(b)"], ["/a\nHost *"], ["/a!b"]])
      assert.throws(() => render({}, { program }), code("ERR_BAD_PATH"));
    assert.throws(() => render({}, { knownHosts: ["/a$", "{b}"].join("") }), code("ERR_BAD_PATH"));
    for (const option of ["Host *", "Match all", "Include x", "NoValue", "A b\nProxyCommand c", "=x", ""])
      assert.throws(() => render({ sshOptions: [option] }), code("ERR_BAD_SSH_OPTION"));
    for (const sshHostPrefix of ["a b", "*", "a\nb", "-%h;x"])
      assert.throws(() => render({ sshHostPrefix }), code("ERR_BAD_HOST_PATTERN"));
    assert.throws(() => render({ sshHostPrefix: "", hostnameSuffix: "" }), code("ERR_BAD_HOST_PATTERN"));
  });
});

describe("SSH options of the server", () => {
  it("are taken when they are harmless; a server can't have a program run on the user's machine", () => {
    const { options, ignored, hostnamePrefix } = parseDeploymentSsh({
      hostname_prefix: "coder-",
      hostname_suffix: "",
      ssh_config_options: {
        ServerAliveInterval: "30",
        ProxyCommand: "evil",
        LocalCommand: "evil",
        ForwardAgent: "yes",
        User: "a\nProxyCommand evil",
        LogLevel: 3,
      },
    });
    assert.deepEqual(options, ["ServerAliveInterval 30"]);
    assert.deepEqual(ignored, ["ProxyCommand", "LocalCommand", "ForwardAgent", "User", "LogLevel"]);
    assert.equal(hostnamePrefix, "coder-");
  });

  it("can't take hosts of others over: a name that real hosts may have is the user's to choose", () => {
    for (const [prefix, suffix] of [
      ["github.", "com"],
      ["g", "example.com"],
      ["", "coder.com"],
      ["mycoder.x", "xcoder"],
    ]) {
      const found = parseDeploymentSsh({ hostname_prefix: prefix, hostname_suffix: suffix });
      assert.deepEqual([found.hostnamePrefix, found.hostnameSuffix], [undefined, undefined]);
      assert.ok(found.foreignNames.includes(`--hostname-suffix ${suffix}`));
    }
    const own = parseDeploymentSsh({ hostname_prefix: "eu.coder.", hostname_suffix: ".eu.coder" });
    assert.deepEqual(
      [own.hostnamePrefix, own.hostnameSuffix, own.foreignNames],
      ["eu.coder.", "eu.coder", []],
    );
  });

  it("are none when the answer is nothing of the kind", () => {
    for (const body of [undefined, null, "x", [], { ssh_config_options: [1] }])
      assert.deepEqual(parseDeploymentSsh(body).options, []);
  });
});

describe("the diff of a dry run", () => {
  it("shows the lines that change, with three around them", () => {
    assert.equal(
      unifiedDiff("f", "1\n2\n3\n4\n5\n6\n7\n8\n", "1\n2\n3\n4\nX\nY\n6\n7\n8\n"),
      "--- f\n+++ f\n@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-5\n+X\n+Y\n 6\n 7\n 8\n",
    );
    assert.equal(unifiedDiff("f", "", "a\n"), "--- f\n+++ f\n@@ -0,0 +1,1 @@\n+a\n");
    assert.equal(
      unifiedDiff("f", "a", "a\nb\n"),
      "--- f\n+++ f\n@@ -1,2 +1,2 @@\n a\n-\\ No newline at end of file\n+b\n",
    );
    assert.equal(unifiedDiff("f", "a", "a"), "");
  });
});
