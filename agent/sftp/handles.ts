import type fs from "node:fs";
import type { HandleId } from "./wire.ts";

export interface FileHandle {
  kind: "file";
  fd: number;
  /** Absolute. */
  path: Buffer;
  append: boolean;
}
export interface DirectoryHandle {
  kind: "directory";
  dir: fs.Dir;
  /** Absolute. */
  path: Buffer;
  /** Whether `.` and `..` were listed, which Node leaves out. */
  started: boolean;
}
export type Handle = FileHandle | DirectoryHandle;

/** What a session holds open: at most `max`, with the lowest free number for the next, as OpenSSH gives them. */
export class HandleTable {
  readonly max: number;
  #slots: (Handle | "reserved" | undefined)[] = [];
  constructor(max: number) {
    this.max = max;
  }

  /** To be taken before the file is opened. @returns undefined when all are in use */
  reserve(): HandleId | undefined {
    const free = this.#slots.indexOf(undefined);
    const id = free === -1 ? this.#slots.length : free;
    if (id >= this.max) return undefined;
    this.#slots[id] = "reserved";
    return id;
  }

  set(id: HandleId, handle: Handle): void {
    this.#slots[id] = handle;
  }

  release(id: HandleId): void {
    this.#slots[id] = undefined;
  }

  get(id: HandleId): Handle | undefined {
    const slot = this.#slots[id];
    return slot === "reserved" ? undefined : slot;
  }

  file(id: HandleId): FileHandle | undefined {
    const handle = this.get(id);
    return handle?.kind === "file" ? handle : undefined;
  }

  directory(id: HandleId): DirectoryHandle | undefined {
    const handle = this.get(id);
    return handle?.kind === "directory" ? handle : undefined;
  }

  /** @returns all that were open; the table is empty then */
  takeAll(): Handle[] {
    const all = this.#slots.filter((slot): slot is Handle => slot !== undefined && slot !== "reserved");
    this.#slots = [];
    return all;
  }
}
