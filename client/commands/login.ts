import type { Command } from "commander";
import type { LoginResponse, User } from "../../control/contract/index.ts";
import { forgetSession, parseServerUrl, writeLogin } from "../config.ts";
import { apiOf, contextOf } from "../context.ts";
import { ApiError, CliError } from "../errors.ts";
import { ApiClient } from "../http.ts";
import { outputOption, printJson, printTable, prompt, say } from "../output.ts";

interface LoginOptions {
  email?: string;
  password?: string;
  firstUserEmail?: string;
  firstUserUsername?: string;
  firstUserFullName?: string;
  firstUserPassword?: string;
}

export function register(program: Command): void {
  program
    .command("login")
    .argument("[url]", "server address, as https://coder.example.com")
    .description("Log in to a server; on a new server, make the first user")
    .option("--email <email>", "email to log in with (CODER_EMAIL)")
    .option("--password <password>", "password (CODER_PASSWORD keeps it out of the process list)")
    .option("--first-user-email <email>", "email of the first user (CODER_FIRST_USER_EMAIL)")
    .option("--first-user-username <name>", "username of the first user (CODER_FIRST_USER_USERNAME)")
    .option("--first-user-full-name <name>", "full name of the first user (CODER_FIRST_USER_FULL_NAME)")
    .option("--first-user-password <password>", "password of the first user (CODER_FIRST_USER_PASSWORD)")
    .addHelpText(
      "after",
      `
Examples:
  coder login https://coder.example.com
  CODER_PASSWORD=... coder login https://coder.example.com --email alice@example.com
  coder login https://coder.example.com --token <API token>`,
    )
    .action((url: string | undefined, options: LoginOptions, command: Command) =>
      login(url, options, command),
    );
  program
    .command("logout")
    .description("End this session and forget it")
    .option("-y, --yes", "don't ask", false)
    .action((_: unknown, command: Command) => logout(command));
  program
    .command("whoami")
    .description("Show who is logged in, and where")
    .addOption(outputOption("text", "table", "json"))
    .action(({ output }: { output: string }, command: Command) => whoami(output, command));
}

async function login(
  urlArgument: string | undefined,
  options: LoginOptions,
  command: Command,
): Promise<void> {
  const context = contextOf(command);
  const url = urlArgument ? parseServerUrl(urlArgument) : context.url;
  if (!url)
    throw new CliError("ERR_NO_URL", "Which server?", {
      hint: "Try `coder login https://coder.example.com`.",
    });

  // A token given outright is checked, kept, and needs no password.
  const given = command.optsWithGlobals<{ token?: string }>().token ?? process.env["CODER_SESSION_TOKEN"];
  const token = given ?? (await ((await hasUsers(url)) ? passwordLogin : createFirstUser)(url, options));
  const api = new ApiClient(url, token);
  try {
    const user = await api.get<User>("/users/me");
    writeLogin(context.configDir, { url, token });
    say(`Logged in to ${url} as ${user.username}.`);
  } finally {
    api.close();
  }
}

async function hasUsers(url: string): Promise<boolean> {
  const api = new ApiClient(url, "");
  try {
    await api.get("/users/first");
    return true;
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return false;
    throw error;
  } finally {
    api.close();
  }
}

async function passwordLogin(url: string, options: LoginOptions): Promise<string> {
  const email = options.email ?? process.env["CODER_EMAIL"] ?? (await prompt("Email:", "--email"));
  const password =
    options.password ??
    process.env["CODER_PASSWORD"] ??
    (await prompt("Password:", "CODER_PASSWORD, --password or --token", { secret: true }));
  const api = new ApiClient(url, "");
  try {
    return (await api.post<LoginResponse>("/users/login", { email, password })).session_token;
  } finally {
    api.close();
  }
}

async function createFirstUser(url: string, options: LoginOptions): Promise<string> {
  say(`${url} has no users yet: this makes the first one, its owner.`);
  const ask = async (
    given: string | undefined,
    env: string,
    question: string,
    flag: string,
    secret = false,
  ) => given ?? process.env[env] ?? (await prompt(question, flag, { secret }));
  const username = await ask(
    options.firstUserUsername,
    "CODER_FIRST_USER_USERNAME",
    "Username:",
    "--first-user-username",
  );
  const email = await ask(options.firstUserEmail, "CODER_FIRST_USER_EMAIL", "Email:", "--first-user-email");
  const passwordFlag = "CODER_FIRST_USER_PASSWORD or --first-user-password";
  const password = await ask(
    options.firstUserPassword,
    "CODER_FIRST_USER_PASSWORD",
    "Password:",
    passwordFlag,
    true,
  );
  const api = new ApiClient(url, "");
  try {
    const name = options.firstUserFullName ?? process.env["CODER_FIRST_USER_FULL_NAME"] ?? "";
    await api.post("/users/first", { username, email, name, password });
    return (await api.post<LoginResponse>("/users/login", { email, password })).session_token;
  } finally {
    api.close();
  }
}

async function logout(command: Command): Promise<void> {
  const { configDir, url, token } = contextOf(command);
  if (!url || !token) throw new CliError("ERR_NOT_LOGGED_IN", "You are not logged in.");
  const api = new ApiClient(url, token);
  try {
    await api.post("/users/logout");
  } catch (error) {
    // The token may have expired; what matters here is that this machine forgets it.
    if (!(error instanceof ApiError && error.status === 401)) say(`warning: ${(error as Error).message}`);
  } finally {
    api.close();
    forgetSession(configDir);
  }
  say("Logged out.");
}

async function whoami(output: string, command: Command): Promise<void> {
  const api = apiOf(command);
  try {
    const user = await api.get<User>("/users/me");
    const roles = user.roles.map(({ name }) => name);
    if (output === "json") return printJson([{ url: api.url, username: user.username, id: user.id, roles }]);
    if (output === "table")
      return printTable(
        [{ url: api.url, username: user.username, id: user.id, roles: roles.join(",") }],
        ["url", "username", "id", "roles"],
      );
    process.stdout.write(`${user.username} at ${api.url}\n`);
  } finally {
    api.close();
  }
}
