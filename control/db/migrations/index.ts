// Every migration, oldest first. A released one never changes: what it made is in people's databases. A new one
// gets the next number and may only add, or change in ways the code of the release before survives reading.
import type { Migration } from "../migrate.ts";
import { initial } from "./0001_initial.ts";
import { mesh } from "./0002_mesh.ts";

export const migrations: Migration[] = [
  { name: "0001_initial", up: initial },
  { name: "0002_mesh", up: mesh },
];
