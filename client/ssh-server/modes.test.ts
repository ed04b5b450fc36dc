import assert from "node:assert/strict";
import fc from "fast-check";
import { decodePtyRequest, decodeTerminalModes } from "./modes.ts";

const hex = (text: string) => Buffer.from(text.replace(/\s/g, ""), "hex");
/** As OpenSSH 9.2 sends it: output speed, input speed, VINTR 3, IUTF8 1, ECHO 0, end. */
const MODES = "81 00009600  80 00009600  01 00000003  2a 00000001  35 00000000  00";
const REQUEST = `62 00000007 00000007 ${Buffer.from("pty-req").toString("hex")} 01
  00000005 ${Buffer.from("xterm").toString("hex")} 00000050 00000018 00000280 000001e0
  0000001a ${MODES}`;

describe("terminal modes", () => {
  it("are read by name", () => {
    assert.deepEqual(decodeTerminalModes(hex(MODES)), {
      TTY_OP_OSPEED: 38_400,
      TTY_OP_ISPEED: 38_400,
      VINTR: 3,
      IUTF8: 1,
      ECHO: 0,
    });
  });

  it("end at TTY_OP_END, at opcodes of unknown length and where they are cut short", () => {
    assert.deepEqual(decodeTerminalModes(hex("01 00000003 00 02 00000004")), { VINTR: 3 });
    assert.deepEqual(decodeTerminalModes(hex("01 00000003 a0 02 00000004")), { VINTR: 3 });
    assert.deepEqual(decodeTerminalModes(hex("01 00000003 02 000000")), { VINTR: 3 });
    assert.deepEqual(decodeTerminalModes(hex("9f 00000003 02 00000004")), { VQUIT: 4 });
  });

  it("come with the request for a terminal", () => {
    assert.deepEqual(decodePtyRequest(hex(REQUEST)), {
      recipient: 7,
      wantReply: true,
      term: "xterm",
      cols: 80,
      rows: 24,
      widthPx: 640,
      heightPx: 480,
      modes: decodeTerminalModes(hex(MODES)),
    });
  });

  it("a request cut short is none, and neither is any other message", () => {
    const whole = hex(REQUEST);
    for (let length = 0; length < whole.length; length++)
      assert.equal(decodePtyRequest(whole.subarray(0, length)), undefined);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        decodeTerminalModes(bytes);
        assert.equal(decodePtyRequest(Buffer.from(bytes)), undefined);
      }),
    );
    fc.assert(
      fc.property(fc.nat(whole.length - 1), fc.nat(255), (at, value) => {
        const mutated = Buffer.from(whole);
        mutated[at] = value;
        decodePtyRequest(mutated);
      }),
    );
  });
});
