// The two halves of a stream, each against a plain array of bytes.
import assert from "node:assert/strict";
import fc from "fast-check";
import { concatBytes } from "../wire/bytes.ts";
import { ReceiveHalf } from "./receive-half.ts";
import { type Piece, SendHalf } from "./send-half.ts";

const source = Uint8Array.from({ length: 20_000 }, (_, i) => (i * 31) ^ (i >>> 8));

function readAll(receive: ReceiveHalf, maxBytes = Number.MAX_SAFE_INTEGER): Uint8Array {
  const parts: Uint8Array[] = [];
  for (let part = receive.read(maxBytes); part; part = receive.read(maxBytes)) {
    assert.ok(part.length > 0 && part.length <= maxBytes);
    parts.push(part);
  }
  return concatBytes(...parts);
}

describe("ReceiveHalf", () => {
  const anyPiece = fc.tuple(fc.nat(19_000), fc.oneof(fc.nat(20), fc.nat(3_000)));

  it("puts overlapping pieces in order, however they come and are read", () => {
    fc.assert(
      fc.property(
        fc.array(anyPiece, { maxLength: 60 }),
        fc.integer({ min: 1, max: 5_000 }),
        (pieces, max) => {
          const receive = new ReceiveHalf(1 << 20, 1 << 20);
          const got: Uint8Array[] = [];
          for (const [offset, length] of pieces) {
            receive.receive(offset, source.subarray(offset, offset + length), false);
            if (length % 3 === 0) got.push(readAll(receive, max));
          }
          for (let offset = 0; offset < source.length; offset += 700)
            receive.receive(offset, source.subarray(offset, offset + 700), false);
          receive.receive(source.length, new Uint8Array(), true);
          got.push(readAll(receive, max));
          assert.ok(Buffer.compare(concatBytes(...got), source) === 0);
          assert.equal(receive.reorderRanges, 0);
          assert.ok(receive.isDone);
        },
      ),
    );
  });

  it("hands out a view of the packet when that is most of its memory, a copy when not", () => {
    const receive = new ReceiveHalf(1 << 20, 1 << 20);
    const packet = source.slice(0, 4_000);
    receive.receive(0, packet.subarray(100, 3_100), false);
    assert.equal(receive.read(9_999)?.buffer, packet.buffer);
    receive.receive(3_000, packet.subarray(0, 1_500), false);
    assert.equal(receive.read(9_999)?.buffer.byteLength, 1_500);
  });

  it("holds a million single bytes in few buffers", () => {
    const receive = new ReceiveHalf(1 << 20, 1 << 20);
    for (let i = 0; i < 50_000; i++) receive.receive(i, source.subarray(i % 9_000, (i % 9_000) + 1), false);
    let chunks = 0;
    let bytes = 0;
    for (let part = receive.read(1 << 20); part; part = receive.read(1 << 20)) {
      chunks++;
      bytes += part.length;
    }
    assert.equal(bytes, 50_000);
    assert.ok(chunks < 20, `${chunks} chunks`);
  });

  it("refuses a moved end, data behind the end, and data beyond the window", () => {
    const ended = (): ReceiveHalf => {
      const receive = new ReceiveHalf(1_000, 1_000);
      receive.receive(0, source.subarray(0, 10), true);
      return receive;
    };
    assert.throws(() => ended().receive(5, source.subarray(0, 10), false), /beyond its end/);
    assert.throws(() => ended().receive(5, source.subarray(0, 3), true), /end of a stream moved/);
    assert.throws(() => ended().receiveReset(0, 11), /beyond its end|moved/);
    assert.throws(() => new ReceiveHalf(5, 5).receive(0, source.subarray(0, 6), false), /window allows/);
    assert.equal(ended().receive(2, source.subarray(0, 3), false), 0);
  });

  it("counts everything as consumed once nobody wants it", () => {
    const receive = new ReceiveHalf(1_000, 1_000);
    receive.receive(100, source.subarray(0, 50), false);
    receive.discard();
    assert.equal(receive.window.consumed, 150);
    receive.receive(400, source.subarray(0, 100), false);
    assert.equal(receive.window.consumed, 500);
    receive.receiveReset(7, 700);
    assert.equal(receive.window.consumed, 700);
    assert.ok(receive.isDone);
  });
});

describe("SendHalf", () => {
  const anyStep = fc.record({
    write: fc.oneof(fc.nat(5), fc.nat(4_000)),
    room: fc.integer({ min: 1, max: 3_000 }),
    credit: fc.nat(2_000),
    fate: fc.constantFrom("acked", "lost", "late"),
  });

  it("offers every byte until it is acknowledged, and frees it then", () => {
    fc.assert(
      fc.property(fc.array(anyStep, { maxLength: 60 }), (steps) => {
        const send = new SendHalf(Number.MAX_SAFE_INTEGER);
        const got = new Uint8Array(source.length);
        const late: Piece[] = [];
        let written = 0;
        let freed = 0;
        const settle = ({ offset, length, fin }: Piece): void => {
          freed += send.onAcked(offset, length, fin);
        };
        const one = (room: number, credit: number): Piece | undefined => {
          const piece = send.nextPiece(room, credit);
          if (piece === undefined) return undefined;
          send.take(piece);
          send.copy(got, piece.offset, piece.offset, piece.length);
          return piece;
        };
        for (const { write, room, credit, fate } of steps) {
          const bytes = source.subarray(written, written + write);
          send.write(bytes);
          written += bytes.length;
          const piece = one(room, credit);
          if (piece === undefined) continue;
          assert.ok(piece.length <= room && (!piece.isFresh || piece.length <= credit));
          if (fate === "acked") settle(piece);
          if (fate === "lost") send.onLost(piece.offset, piece.length, piece.fin);
          if (fate === "late") late.push(piece);
        }
        send.end();
        for (const [i, piece] of late.entries()) {
          if (i % 2 === 0) send.onLost(piece.offset, piece.length, piece.fin);
          settle(piece); // lost or not, it arrived after all
        }
        for (let piece = one(1_500, 1e9); piece; piece = one(1_500, 1e9)) settle(piece);
        assert.ok(send.isDone);
        assert.equal(freed, written);
        assert.equal(send.bufferedBytes, 0);
        assert.ok(Buffer.compare(got.subarray(0, written), source.subarray(0, written)) === 0);
      }),
    );
  });

  it("copies small writes, so that the caller may use its buffer again", () => {
    const send = new SendHalf(1_000);
    const typed = new Uint8Array([1]);
    for (const key of [7, 8, 9]) {
      typed[0] = key;
      send.write(typed);
    }
    const out = new Uint8Array(3);
    send.copy(out, 0, 0, 3);
    assert.deepEqual([...out], [7, 8, 9]);
  });

  it("drops everything on reset and says how far it had come", () => {
    const send = new SendHalf(1_000);
    send.write(source.subarray(0, 5_000));
    send.take(send.nextPiece(300, 9_999)!);
    assert.equal(send.reset(4), 5_000);
    assert.deepEqual(send.resetToSend, { code: 4, finalSize: 300 });
    assert.equal(send.nextPiece(300, 9_999), undefined);
    send.onResetSent();
    send.onResetLost();
    assert.deepEqual(send.resetToSend, { code: 4, finalSize: 300 });
    send.onResetAcked();
    assert.ok(send.isDone);
  });
});
