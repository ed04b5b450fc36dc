import type { NodeConnection, NodeSubject } from "./coordinator.ts";

/** What one connection knows; made by `Coordinator.accept`. Thousands of these: what few need is made when needed. */
export class NodeLink {
  readonly id: string;
  readonly subject: NodeSubject;
  readonly connection: NodeConnection;
  /** Clients: agents they are told about, and until when (Unix ms): as long as the last grant for each lives. */
  watched: Map<string, number> | undefined;
  nodeKey: string | undefined;
  /** The key its resume token named. */
  resumedKey: string | undefined;
  /** The resume token it showed, until its credential was looked up: up to then it gets nothing that would outlive it. */
  unconfirmedToken: string | undefined;
  /** hashCredential() of what it logged in with. */
  credential: string | undefined;
  /** An agent whose record is out: clients can find it. */
  published = false;
  publishedAtMs = 0;
  /** When its relay ticket and resume token were made. */
  ticketAtMs = 0;
  homeRegion: number | undefined;
  /** Of an agent: how often it may move its home now, as of `at`. */
  homeMoves: { left: number; at: number } | undefined;
  /** What could not be done at hello because the store was away. */
  owes: { liveGrants: string[] } | undefined;
  unknownMessages = 0;
  /** Messages of one node are handled in the order they came. */
  tail: Promise<void> = Promise.resolve();

  constructor(id: string, subject: NodeSubject, connection: NodeConnection) {
    this.id = id;
    this.subject = subject;
    this.connection = connection;
  }
}
