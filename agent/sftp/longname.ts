// The line `ls -l` would print, which READDIR carries for clients to show as it is.

const HALF_YEAR_S = (365 * 24 * 60 * 60) / 2;
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

const TYPE_MASK = 0o170000;
const TYPE_LETTERS = new Map([
  [0o010000, "p"],
  [0o020000, "c"],
  [0o040000, "d"],
  [0o060000, "b"],
  [0o100000, "-"],
  [0o120000, "l"],
  [0o140000, "s"],
]);

function triad(bits: number, special: boolean, letter: string): string {
  const execute = (bits & 1) !== 0;
  const last = special ? (execute ? letter : letter.toUpperCase()) : execute ? "x" : "-";
  return `${bits & 4 ? "r" : "-"}${bits & 2 ? "w" : "-"}${last}`;
}

/** @returns e.g. "drwxr-xr-x " for st_mode, with the blank where ACLs would be told */
export function modeString(mode: number): string {
  const type = TYPE_LETTERS.get(mode & TYPE_MASK) ?? "?";
  const owner = triad((mode >> 6) & 7, (mode & 0o4000) !== 0, "s");
  const group = triad((mode >> 3) & 7, (mode & 0o2000) !== 0, "s");
  return `${type}${owner}${group}${triad(mode & 7, (mode & 0o1000) !== 0, "t")} `;
}

const padTwo = (value: number, fill: string) => String(value).padStart(2, fill);

/** "Jan  2 15:04", or "Jan  2  2006" when half a year old, in the process's time zone. Both: unix seconds. */
export function dateString(modifiedAtS: number, nowS: number): string {
  const date = new Date(modifiedAtS * 1000);
  const day = `${MONTHS[date.getMonth()]} ${padTwo(date.getDate(), " ")}`;
  return nowS - modifiedAtS < HALF_YEAR_S
    ? `${day} ${padTwo(date.getHours(), "0")}:${padTwo(date.getMinutes(), "0")}`
    : `${day}  ${date.getFullYear()}`;
}

export interface ListedFile {
  mode: number;
  links: number;
  user: string;
  group: string;
  sizeBytes: number;
  modifiedAtS: number;
}

/** Everything of the line but the name, with the blank before it. */
export function longNamePrefix(file: ListedFile, nowS: number): string {
  const links = String(file.links).padStart(3);
  const size = String(file.sizeBytes).padStart(8);
  const date = dateString(file.modifiedAtS, nowS);
  return `${modeString(file.mode)} ${links} ${file.user.padEnd(8)} ${file.group.padEnd(8)} ${size} ${date} `;
}
