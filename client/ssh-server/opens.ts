/** RFC 4254 section 5.1. */
export const OPEN_FAILURE = { prohibited: 1, connectFailed: 2, unknownType: 3, resourceShortage: 4 } as const;

/** How a channel of ours is announced, and where its callback came from. */
export type ClientOpen =
  | { type: "auth-agent" }
  | { type: "x11"; originAddress: string; originPort: number }
  | {
      type: "forwarded-tcpip";
      boundAddress: string;
      boundPort: number;
      originAddress: string;
      originPort: number;
    }
  | { type: "forwarded-streamlocal"; path: string };
