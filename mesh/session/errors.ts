import { MeshError } from "../wire/errors.ts";
import { CLOSE_CODES, type CloseName } from "../wire/session.ts";

export type SessionErrorCode =
  | "ERR_SESSION_CLOSED"
  | "ERR_STREAM_LIMIT"
  | "ERR_STREAM_ENDED"
  | "ERR_OPEN_TOO_LARGE"
  | "ERR_GRANT_TOO_LARGE"
  | "ERR_LANE_LIMIT";

/** The caller used the session in a way it cannot serve; the session itself is unharmed. */
export class SessionError extends MeshError {
  readonly code: SessionErrorCode;
  constructor(code: SessionErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

/** The peer broke a rule: thrown inside receivePacket only, which turns it into CLOSE. */
export class PeerViolation extends MeshError {
  readonly code = "ERR_PEER_VIOLATION";
  readonly closeCode: number;
  constructor(name: CloseName, message: string) {
    super(message);
    this.closeCode = CLOSE_CODES[name].code;
  }
}
