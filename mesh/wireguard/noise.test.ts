import assert from "node:assert/strict";
import vectors from "../../test/vectors/noise.json" with { type: "json" };
import { nodeCrypto } from "../node/crypto.ts";
import { concatBytes, fromHex, toHex } from "../wire/bytes.ts";
import { portableCrypto } from "./crypto-portable.ts";
import { PROTOCOL_NAME, readInitiation, readResponse, writeInitiation, writeResponse } from "./noise.ts";

for (const [name, crypto] of Object.entries({ native: nodeCrypto, portable: portableCrypto })) {
  describe(`Noise handshake, ${name} crypto`, () => {
    for (const v of vectors.noise) {
      const initiator = crypto.keyPair(fromHex(v.init_static));
      const responder = crypto.keyPair(fromHex(v.resp_static));
      const atInitiator = { crypto, prologue: fromHex(v.init_prologue), identity: initiator };
      const atResponder = { crypto, prologue: fromHex(v.resp_prologue), identity: responder };
      const payloads = v.messages.map(({ payload }) => fromHex(payload));

      const initiation = () =>
        writeInitiation(
          atInitiator,
          { publicKey: fromHex(v.init_remote_static), shared: initiator.shared(responder.publicKey)! },
          crypto.keyPair(fromHex(v.init_ephemeral)),
          payloads[0],
        )!;
      const read = (sent: ReturnType<typeof initiation>, prologue = atResponder.prologue) =>
        readInitiation(
          { ...atResponder, prologue },
          {
            ephemeral: sent.ephemeral.publicKey,
            sealedStatic: sent.sealedStatic,
            sealedPayload: sent.sealedPayload,
          },
          (remote) => responder.shared(remote),
        );

      it(`${v.protocol_name} makes every published byte`, () => {
        assert.equal(v.protocol_name, PROTOCOL_NAME);
        const sent = initiation();
        const first = concatBytes(sent.ephemeral.publicKey, sent.sealedStatic, sent.sealedPayload);
        assert.equal(toHex(first), v.messages[0].ciphertext);

        const received = read(sent)!;
        assert.equal(toHex(received.payload), v.messages[0].payload);
        assert.equal(toHex(received.remoteStatic), toHex(initiator.publicKey));
        const ephemeral = crypto.keyPair(fromHex(v.resp_ephemeral));
        const answer = writeResponse(received, ephemeral, fromHex(v.resp_psk), payloads[1])!;
        assert.equal(toHex(concatBytes(ephemeral.publicKey, answer.sealedPayload)), v.messages[1].ciphertext);

        const done = readResponse(
          atInitiator,
          sent,
          { ephemeral: ephemeral.publicKey, sealedPayload: answer.sealedPayload },
          fromHex(v.init_psk),
        )!;
        assert.equal(toHex(done.payload), v.messages[1].payload);
        assert.deepEqual(
          [toHex(done.keys.send), toHex(done.keys.receive)],
          [toHex(answer.keys.receive), toHex(answer.keys.send)],
        );

        // What follows alternates, each direction with its own counter.
        v.messages.slice(2).forEach(({ payload, ciphertext }, i) => {
          const [from, to] = i % 2 === 0 ? [done.keys, answer.keys] : [answer.keys, done.keys];
          const counter = Math.floor(i / 2);
          const plaintext = fromHex(payload);
          const sealed = crypto.transportCipher(from.send).seal(counter, plaintext, plaintext.length, 0);
          assert.equal(toHex(sealed), ciphertext);
          assert.equal(toHex(crypto.transportCipher(to.receive).open(counter, sealed)!), payload);
        });
      });

      it("refuses another prologue, an initiator that is not wanted, and another psk", () => {
        const sent = initiation();
        assert.equal(read(sent, fromHex("00")), undefined);
        const message = {
          ephemeral: sent.ephemeral.publicKey,
          sealedStatic: sent.sealedStatic,
          sealedPayload: sent.sealedPayload,
        };
        assert.equal(
          readInitiation(atResponder, message, () => undefined),
          undefined,
        );
        const ephemeral = crypto.keyPair(fromHex(v.resp_ephemeral));
        const answer = writeResponse(read(sent)!, ephemeral, fromHex(v.resp_psk), payloads[1])!;
        const response = { ephemeral: ephemeral.publicKey, sealedPayload: answer.sealedPayload };
        assert.equal(readResponse(atInitiator, sent, response, new Uint8Array(32)), undefined);
      });

      it("still takes the real response after a forged one", () => {
        const sent = initiation();
        const ephemeral = crypto.keyPair(fromHex(v.resp_ephemeral));
        const answer = writeResponse(read(sent)!, ephemeral, fromHex(v.resp_psk), payloads[1])!;
        const forged = Uint8Array.from(answer.sealedPayload, (byte) => byte ^ 1);
        const psk = fromHex(v.init_psk);
        const response = { ephemeral: ephemeral.publicKey, sealedPayload: forged };
        assert.equal(readResponse(atInitiator, sent, response, psk), undefined);
        response.ephemeral = new Uint8Array(32);
        assert.equal(readResponse(atInitiator, sent, response, psk), undefined);
        assert.ok(
          readResponse(
            atInitiator,
            sent,
            { ephemeral: ephemeral.publicKey, sealedPayload: answer.sealedPayload },
            psk,
          ),
        );
      });
    }
  });
}
