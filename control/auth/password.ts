// Passwords are kept as argon2id, in the PHC string form ($argon2id$v=19$m=…,t=…,p=…$salt$hash), so that the
// parameters can grow: a login with an older hash verifies, and needsRehash() says to store a new one.
import { randomBytes } from "node:crypto";
import { hash as argon2Hash, verify as argon2Verify, type Options } from "@node-rs/argon2";
import { PasswordError } from "./errors.ts";

/** @see https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html (argon2id, 19 MiB) */
export const ARGON2_MEMORY_KIB = 19_456;
export const ARGON2_PASSES = 2;
export const ARGON2_LANES = 1;
const OPTIONS: Options = {
  // Algorithm.Argon2id; the package declares it as a const enum, which isolated modules can't read.
  algorithm: 2,
  memoryCost: ARGON2_MEMORY_KIB,
  timeCost: ARGON2_PASSES,
  parallelism: ARGON2_LANES,
  outputLen: 32,
};

export const MIN_PASSWORD_CHARS = 8;
/** As deployed clients expect. */
export const MAX_PASSWORD_CHARS = 64;
/** What Coder asks for too: 9 random letters of both cases, or 12 lower-case ones, pass. */
export const MIN_PASSWORD_BITS = 52;

/** One spelling for what keyboards type differently (composed and combining accents). */
function normalize(password: string): string {
  return password.normalize("NFKC");
}

/**
 * A rough upper bound of the guessing work: the alphabet of the character classes used, to the power of the
 * characters that don't just continue a run (aaaa, abcd, 4321). It knows no dictionary.
 */
export function passwordBits(password: string): number {
  const chars = [...normalize(password)];
  let alphabet = 0;
  if (chars.some((c) => /[a-z]/.test(c))) alphabet += 26;
  if (chars.some((c) => /[A-Z]/.test(c))) alphabet += 26;
  if (chars.some((c) => /[0-9]/.test(c))) alphabet += 10;
  if (chars.some((c) => /[\x20-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]/.test(c))) alphabet += 33;
  if (chars.some((c) => /[^\x20-\x7e]/.test(c))) alphabet += 100;
  const codes = chars.map((c) => c.codePointAt(0)!);
  const surprising = codes.filter((code, i) => {
    const step = i >= 1 ? code - codes[i - 1]! : Number.NaN;
    const stepBefore = i >= 2 ? codes[i - 1]! - codes[i - 2]! : Number.NaN;
    return !(step === stepBefore && Math.abs(step) <= 1);
  });
  return alphabet === 0 ? 0 : Math.log2(alphabet) * surprising.length;
}

/** @throws {PasswordError} ERR_PASSWORD_WEAK */
export function checkPassword(password: string): void {
  const length = [...normalize(password)].length;
  if (length > MAX_PASSWORD_CHARS) {
    throw new PasswordError(`use at most ${MAX_PASSWORD_CHARS} characters, this password has ${length}`);
  }
  if (length < MIN_PASSWORD_CHARS) {
    throw new PasswordError(`use at least ${MIN_PASSWORD_CHARS} characters, this password has ${length}`);
  }
  if (passwordBits(password) < MIN_PASSWORD_BITS) {
    throw new PasswordError(
      "this password is too easy to guess: make it longer, or mix upper and lower case, digits and punctuation",
    );
  }
}

/**
 * Doesn't judge the password: call checkPassword first where somebody chooses one.
 *
 * @returns a PHC string
 */
export async function hashPassword(password: string): Promise<string> {
  return await argon2Hash(normalize(password), OPTIONS);
}

let dummyHash: Promise<string> | undefined;

/**
 * Takes the same time whether the user exists or not: for an unknown one (`phc` undefined, or empty as for
 * users who log in elsewhere) a hash of nobody's password is checked.
 *
 * @returns false also for a hash that can't be parsed
 */
export async function verifyPassword(password: string, phc: string | undefined | null): Promise<boolean> {
  dummyHash ??= hashPassword(randomBytes(32).toString("base64"));
  const known = phc?.startsWith("$argon2id$") ? phc : undefined;
  // What was never accepted can't be right, and isn't worth hashing at full length.
  const bounded = password.length <= MAX_PASSWORD_CHARS * 4 ? password : "";
  const matches = await argon2Verify(known ?? (await dummyHash), normalize(bounded)).catch(() => false);
  return matches && known !== undefined && bounded === password;
}

/** True when `phc` was made with other parameters than today's: hash the password again at the next login. */
export function needsRehash(phc: string): boolean {
  const wanted = `$argon2id$v=19$m=${ARGON2_MEMORY_KIB},t=${ARGON2_PASSES},p=${ARGON2_LANES}$`;
  return !phc.startsWith(wanted);
}
