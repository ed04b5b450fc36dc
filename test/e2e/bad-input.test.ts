import assert from "node:assert/strict";
import { existsSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import path from "node:path";
import { bundle, Sandbox } from "./sandbox.ts";
import { assertRefused, PASSWORD, Person, TestServer, templates } from "./server.ts";

describe("bad input at the command line", function () {
  this.timeout(60_000);
  let sandbox: Sandbox;
  let server: TestServer;
  let alice: Person;
  let bob: Person;
  before(async () => {
    sandbox = new Sandbox();
    server = await TestServer.start(sandbox);
    alice = await Person.first(sandbox, server.url, "alice");
    bob = await alice.invite("bob");
    await alice.mustPush("empty", templates.empty);
    await alice.must("create", "used", "--template", "empty", "--yes");
  });
  after(async () => {
    await server?.stop();
    const left = sandbox.processes();
    sandbox.dispose();
    assert.deepEqual(left, [], "processes left behind");
  });

  describe("login", () => {
    it("without a login every command says how to get one", async () => {
      const nobody = new Person(sandbox, server.url, "nobody");
      const commands = [
        ["list"],
        ["whoami"],
        ["show", "used"],
        ["create", "x"],
        ["ssh", "used", "true"],
        ["ping", "used"],
        ["start", "used"],
        ["stop", "used", "--yes"],
        ["delete", "used", "--yes"],
        ["templates", "list"],
        ["templates", "push", "x"],
      ];
      for (const command of commands)
        assertRefused(
          await nobody.coder(...command),
          command[0] === "ssh" ? 255 : 1,
          /not logged in.*\n.*coder login/,
        );
      assert.equal(existsSync(nobody.configDir), false, "nothing is written");
    });

    it("a wrong password and an unknown user get the same answer, and the login before stays", async () => {
      const tries = [
        ["alice@example.com", "wrong-Horse-9"],
        ["nobody@example.com", PASSWORD],
      ];
      const [wrong, unknown] = await Promise.all(
        tries.map(([email, password]) =>
          alice.coder("login", server.url, "--email", email, "--password", password),
        ),
      );
      assertRefused(wrong, 1, /Incorrect email or password/, /administrator/);
      assert.equal(unknown.stderr, wrong.stderr);
      assert.equal(unknown.code, wrong.code);
      assert.match((await alice.must("whoami")).stdout, /^alice at /);
    });

    it("a token that isn't one is refused and not kept", async () => {
      const before = alice.token;
      const refused = await alice.coder("login", server.url, "--token", `${before.slice(0, -1)}!`);
      assertRefused(refused, 1, /coder login/);
      assert.equal(alice.token, before);
    });

    it("a first user's bad name, address and password are told one by one", async () => {
      const other = new Sandbox();
      const empty = await TestServer.start(other);
      try {
        const flags = ["--first-user-username", "a b", "--first-user-email", "x", "--first-user-password"];
        const stranger = new Person(other, empty.url, "stranger");
        assertRefused(
          await stranger.coder("login", empty.url, ...flags, PASSWORD),
          1,
          /email: /,
          /username: /,
        );
        flags[1] = "ann";
        flags[3] = "ann@example.com";
        assertRefused(await stranger.coder("login", empty.url, ...flags, "short"), 1, /password: .*8/);
        await Person.first(other, empty.url, "ann");
      } finally {
        await empty.stop();
        other.dispose();
      }
    });

    it("an address that is none, and a server that isn't there, are told apart", async () => {
      assertRefused(await bob.coder("--url", "http://", "list"), 1, /no.* server address\n.*https:/);
      const away = await bob.coder("--url", "http://127.0.0.1:1", "list");
      assertRefused(away, 1, /cannot reach http:\/\/127\.0\.0\.1:1.*\nIs the server running/);
    });

    it("a login that can't be written says where", async () => {
      const file = path.join(sandbox.dir, "a-file");
      writeFileSync(file, "");
      const done = await bob.coder("login", server.url, "--token", bob.token, "--global-config", `${file}/x`);
      assertRefused(done, 1, /a-file/);
    });
  });

  describe("questions", () => {
    const questions: [RegExp, ...string[]][] = [
      [/terminal.*\n.*--yes/, "stop", "used"],
      [/terminal.*\n.*--yes/, "delete", "used"],
      [/terminal.*\n.*--yes/, "create", "x", "--template", "empty"],
      [/terminal.*\n.*coder create <workspace>/, "create"],
      [/terminal.*\n.*CODER_PASSWORD/, "login", "--email", "alice@example.com"],
      [/terminal.*\n.*--email/, "login"],
    ];
    for (const [says, ...command] of questions)
      it(`without a terminal, coder ${command.join(" ")} names what answers`, async () => {
        assertRefused(await alice.coder(...command), 1, says);
      });

    it("an unknown command, option or value names itself and the help", async () => {
      for (const [says, ...command] of [
        [/unknown command 'nosuch'/, "nosuch"],
        [/unknown command 'nosuch'/, "templates", "nosuch"],
        [/unknown option '--nosuch'/, "list", "--nosuch"],
        [/missing required argument 'workspace'/, "show"],
        [/too many arguments/, "start", "a", "b"],
        [/choices are table, json/, "list", "--output", "yaml"],
        [/choices are debug, info/, "server", "--log-level", "loud"],
      ] as [RegExp, ...string[]][])
        assertRefused(await alice.coder(...command), 1, says, /Try `coder --help`/);
    });

    it("options that every command takes work before and behind its name", async () => {
      const url = ["--url", "http://127.0.0.1:1"];
      for (const command of [
        [...url, "templates", "list"],
        ["templates", "list", ...url],
        ["templates", ...url, "list"],
      ])
        assertRefused(await alice.coder(...command), 1, /cannot reach http:\/\/127\.0\.0\.1:1/);
    });
  });

  describe("names", () => {
    it("an unknown workspace is the same sentence for every command, 255 for a session", async () => {
      for (const command of [
        ["show"],
        ["start"],
        ["stop", "--yes"],
        ["delete", "--yes"],
        ["ping"],
        ["ssh"],
      ]) {
        const code = command[0] === "ssh" ? 255 : 1;
        const done = await alice.coder(command[0], ...command.slice(1), "nosuch");
        assertRefused(done, code, /There is no workspace "nosuch".*\n`coder list`/);
      }
      for (const name of ["a/b/c", "used.a.b", "", "used."])
        assertRefused(await alice.coder("show", name), 1, /names no workspace\nWrite it as/);
    });

    it("an unknown template, agent or owner says what there is", async () => {
      const template = await alice.coder("create", "x", "--template", "nosuch", "--yes");
      assertRefused(template, 1, /no template "nosuch".*\n.*empty/);
      assertRefused(await alice.coder("ssh", "used.nosuch", "true"), 255, /no agent "nosuch"/);
      assertRefused(
        await alice.coder("create", "nosuch/x", "--template", "empty", "--yes"),
        1,
        /User not found/,
      );
    });

    it("a taken name is refused, whatever its case, and the workspace that has it stays", async () => {
      for (const name of ["used", "USED"])
        assertRefused(
          await alice.coder("create", name, "--template", "empty", "--yes"),
          1,
          /already exists.*another name/,
        );
      const { status, number } = await alice.build("used");
      assert.deepEqual({ status, number }, { status: "running", number: 1 });
      assertRefused(await alice.coder("create", "No_Name!", "--template", "empty", "--yes"), 1, /name: /);
    });
  });

  describe("templates", () => {
    it("one that doesn't parse says file and line, and the version before stays in use", async () => {
      const fresh = await alice.push("broken", templates.broken);
      assertRefused(fresh, 1, /^error: Import of template broken failed: .*main\.tf line 8.*\nCorrect it/m);
      assert.doesNotMatch((await alice.must("templates", "list")).stdout, /broken/);

      const again = await alice.push("empty", templates.broken);
      assertRefused(again, 1, /main\.tf line 8/, /version before stays in use/);
      await alice.must("create", "still", "--template", "empty", "--yes");
    });

    it("one over the upload limit says the limit and what to do; nothing is stored", async () => {
      // Compression would not help: it is the archive's size that counts.
      const big = await alice.push("big", { "main.tf": templates.empty, blob: "x".repeat(1_200_000) });
      assertRefused(big, 1, /larger than 1 MiB/, /Take out of the template folder/);
      assert.doesNotMatch((await alice.must("templates", "list")).stdout, /big/);
    });

    it("a folder that is missing or holds no template says so", async () => {
      const missing = await alice.coder("templates", "push", "x", "-y", "-d", path.join(sandbox.dir, "no"));
      assertRefused(missing, 1, /Cannot read .*no/);
      const empty = path.join(sandbox.dir, "empty-folder");
      mkdirSync(empty);
      const nothing = await alice.coder("templates", "push", "x", "-y", "-d", empty);
      assertRefused(nothing, 1, /no Terraform file.*\n.*--directory/);
    });

    it("variables without a value are named, and given on the next push", async () => {
      const missing = await alice.push("variables", templates.variables);
      assertRefused(missing, 1, /no value: secret, zone; .*--variable NAME=VALUE/);
      const { body } = await alice.api("GET", "/organizations/default/templates/variables");
      assert.match(body, /ERR_NOT_FOUND/);
      const values = ["--variable", "zone=eu", "--variable", "secret=do-not-tell-1"];
      const given = await alice.push("variables", templates.variables, ...values);
      assert.equal(given.code, 0, given.stderr);
      const created = await alice.must("create", "vars", "--template", "variables", "--yes");
      assert.doesNotMatch(given.stderr + created.stderr, /do-not-tell-1/);
    });

    it("parameters that are missing, unknown or not valid are named; valid ones are kept", async () => {
      await alice.mustPush("parameters", templates.parameters);
      const create = (...pairs: string[]) =>
        alice.coder(
          ...["create", "sized", "--template", "parameters", "--yes"],
          ...pairs.flatMap((pair) => ["--parameter", pair]),
        );
      assertRefused(await create(), 1, /region \(eu, us\).*\n.*--parameter region=<value>/);
      assertRefused(await create("region=xx"), 1, /region: "xx".*eu, us/);
      assertRefused(await create("region=eu", "size=11"), 1, /size: .*at most 10/);
      assertRefused(await create("region=eu", "size=many"), 1, /size: /);
      assertRefused(await create("region=eu", "nosuch=1"), 1, /nosuch: .*no such parameter/);
      assertRefused(await create("region"), 1, /not name=value/);
      assertRefused(await alice.coder("show", "sized"), 1, /no workspace/);
      const done = await create("region=us", "size=7");
      assert.equal(done.code, 0, done.stderr);
      const { body } = await alice.api(
        "GET",
        `/workspacebuilds/${(await alice.build("sized")).id}/parameters`,
      );
      assert.deepEqual(JSON.parse(body), [
        { name: "region", value: "us" },
        { name: "size", value: "7" },
      ]);
    });
  });

  describe("workspaces and people", () => {
    it("a build that fails half-way says where, keeps its state, and can be deleted", async () => {
      await alice.mustPush("half", templates.half);
      const create = await alice.coder("create", "halved", "--template", "half", "--yes");
      assertRefused(create, 1, /^error: The start build of halved failed: .*main\.tf line 11.*no luck/m);
      assert.match(create.stderr, /`coder start halved`.*`coder delete halved`\.\n$/);
      assert.deepEqual(await alice.state("halved"), ["terraform_data.first", "terraform_data.second"]);
      assert.match((await alice.must("show", "halved")).stdout, /failed.*\n.*main\.tf line 11/);
      assertRefused(await alice.coder("ping", "halved"), 255, /last build .* failed.*\n.*coder start halved/);
      const removed = await alice.must("delete", "halved", "--yes");
      assert.match(removed.stderr, /2 destroyed/);
      assertRefused(await alice.coder("show", "halved"), 1, /no workspace "halved"/);
    });

    it("a stopped workspace is not reached, and the answer says how to start it", async () => {
      await alice.must("create", "asleep", "--template", "empty", "--yes");
      await alice.must("stop", "asleep", "--yes");
      for (const command of [
        ["ping", "asleep"],
        ["ssh", "--disable-autostart", "asleep", "true"],
      ])
        assertRefused(await alice.coder(...command), 255, /asleep is stopped\.\n.*`coder start asleep`/);
      assert.equal((await alice.build("asleep")).status, "stopped");
    });

    it("a member can't push templates, nor see or touch others' workspaces, but has their own", async () => {
      assertRefused(await bob.push("mine", templates.empty), 1, /You may not do this/, /owner/);
      assertRefused(await bob.push("empty", templates.half), 1, /You may not do this/);
      for (const command of [["show"], ["start"], ["stop", "-y"], ["delete", "-y"], ["ping"]])
        assertRefused(
          await bob.coder(...command, "alice/used"),
          1,
          /no workspace "alice\/used", or you may not/,
        );
      assertRefused(await bob.coder("create", "alice/hers", "-t", "empty", "-y"), 1, /User not found/);
      assert.deepEqual(await bob.json("list", "--all"), []);
      await bob.must("create", "used", "--template", "empty", "--yes");
      const own = await bob.json<{ owner_name: string }[]>("list", "--all");
      assert.deepEqual(
        own.map(({ owner_name }) => owner_name),
        ["bob"],
      );
      assertRefused(await bob.coder("delete", "used", "--orphan", "-y"), 1, /Only template admins/);
      await bob.must("delete", "used", "--yes");
      assert.equal((await alice.build("used")).status, "running");
    });

    it("--output json of every command that has it parses", async () => {
      for (const command of [
        ["whoami"],
        ["list"],
        ["list", "--all"],
        ["templates", "list"],
        ["show", "used"],
      ])
        assert.ok(await alice.json(...command), command.join(" "));
      assert.match(JSON.stringify(await alice.json("version")), /"version"/);
      const nothing = await alice.must("list", "--search", "name:nosuch", "-o", "json");
      assert.deepEqual(JSON.parse(nothing.stdout), []);
      assertRefused(await alice.coder("list", "--search", "colour:red", "-o", "json"), 1, /colour/);
    });
  });

  describe("server", () => {
    const serve = (env: NodeJS.ProcessEnv, ...args: string[]) =>
      sandbox.run(
        process.execPath,
        [
          bundle,
          "server",
          "--http-address",
          "127.0.0.1:0",
          "--global-config",
          path.join(sandbox.dir, "other"),
          ...args,
        ],
        env,
      );
    const noSuchDatabase = "postgres://me:s3cret-word@127.0.0.1:1/app";

    it("a taken port is named, with the ways out, and its data folder stays usable", async () => {
      const blocker = createServer();
      await new Promise<void>((resolve) => blocker.listen(0, "127.0.0.1", () => resolve()));
      const { port } = blocker.address() as { port: number };
      try {
        const address = `127.0.0.1:${port}`;
        const refused = await serve({}, "--http-address", address);
        assertRefused(refused, 1, new RegExp(`${address} is in use.*--http-address`));
        const same = await serve({}, "--http-address", address);
        assertRefused(same, 1, /is in use/);
      } finally {
        blocker.close();
      }
    });

    it("a data folder in use is named, and its server goes on", async () => {
      assertRefused(await serve({}, "--global-config", server.dir), 1, /another server uses the database/);
      await alice.must("list");
    });

    it("a database that can't be reached is named without its password", async () => {
      for (const [env, ...args] of [
        [{ CODER_PG_CONNECTION_URL: noSuchDatabase }],
        [{}, "--postgres-url", noSuchDatabase],
      ] as [NodeJS.ProcessEnv, ...string[]][]) {
        const refused = await serve(env, ...args);
        assertRefused(refused, 1, /PostgreSQL at 127\.0\.0\.1:1, database "app", user "me".*ECONNREFUSED/);
        assert.match(refused.stderr, /Check that it runs/);
        assert.doesNotMatch(refused.stderr, /s3cret-word/);
      }
      const wrong = await serve({ CODER_PG_CONNECTION_URL: "host=127.0.0.1 password=s3cret-word" });
      assertRefused(wrong, 1, /doesn't start with postgres:\/\/.*postgres:\/\/user/);
      assert.doesNotMatch(wrong.stderr, /s3cret-word/);
    });

    it("terraform that is missing, broken or too old says what to install", async () => {
      const install = /Install terraform 1\.5\.0 or newer.*CODER_TERRAFORM_BIN/;
      const onlyNode = path.join(sandbox.dir, "only-node");
      mkdirSync(onlyNode);
      assertRefused(await serve({ PATH: onlyNode }, "--air-gapped"), 1, /no terraform on PATH/, install);
      const unreachable = await serve({ PATH: onlyNode, CODER_TERRAFORM_MIRROR: "http://127.0.0.1:1" });
      assertRefused(unreachable, 1, /127\.0\.0\.1:1/, install);

      const old = path.join(sandbox.dir, "old-terraform");
      writeFileSync(old, `#!/bin/sh\necho '{"terraform_version":"1.4.7"}'\n`, { mode: 0o755 });
      const tooOld = await serve({ CODER_TERRAFORM_BIN: old });
      assertRefused(tooOld, 1, /old-terraform is terraform 1\.4\.7/, install);
      writeFileSync(old, "#!/bin/sh\necho hello\n");
      const broken = await serve({ CODER_TERRAFORM_BIN: old });
      assertRefused(broken, 1, /doesn't answer as terraform does/, /unset it/);
      const nowhere = await serve({ CODER_TERRAFORM_BIN: "/nonexistent" });
      assertRefused(nowhere, 1, /\/nonexistent, which can't be found/);
    });

    it("an address to listen on that is none is told with an example", async () => {
      for (const address of ["nonsense", "127.0.0.1:99999", "127.0.0.1"])
        assertRefused(await serve({}, "--http-address", address), 1, /no address to listen on\nWrite it as/);
    });

    it("a data folder that can't be made is named", async () => {
      const file = path.join(sandbox.dir, "not-a-folder");
      writeFileSync(file, "");
      assertRefused(await serve({}, "--global-config", file), 1, /not-a-folder/);
    });
  });

  describe("after all of it", () => {
    it("the system works: a workspace starts, stops and goes", async () => {
      await alice.must("create", "last", "--template", "empty", "--yes");
      await alice.must("stop", "last", "--yes");
      await alice.must("start", "last");
      await alice.must("delete", "last", "--yes");
      const names = (await alice.json<{ name: string }[]>("list")).map(({ name }) => name).sort();
      assert.deepEqual(names, ["asleep", "sized", "still", "used", "vars"]);
      assert.equal(statSync(path.join(alice.configDir, "session")).mode & 0o777, 0o600);
    });
  });
});
