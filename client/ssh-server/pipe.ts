import type { Duplex } from "node:stream";
import type { Channel } from "./channel.ts";

/**
 * Joins a channel with raw bytes and a stream: each direction ends by itself, and either side's back-pressure reaches the
 * other. An error of the stream closes the channel; whoever is at the other end of the channel can't be told more.
 */
export function joinStreams(channel: Channel, stream: Duplex): void {
  channel.onData = (bytes) => {
    if (!stream.writable) return channel.consumed(bytes.length);
    stream.write(bytes, () => channel.consumed(bytes.length));
  };
  channel.onEof = () => {
    if (stream.writable) stream.end();
  };
  channel.onDrain = () => void stream.resume();
  channel.onClose = () => {
    stream.on("error", () => {});
    // What the client had said before still reaches the other end, as with sshd.
    if (stream.writable) stream.end();
    if (stream.writableFinished || stream.destroyed) stream.destroy();
    else stream.once("finish", () => stream.destroy());
  };
  stream.on("data", (chunk: Uint8Array) => {
    if (!channel.write(chunk)) stream.pause();
  });
  stream.on("end", () => channel.eof());
  // Comes once both directions have ended, or after an error.
  stream.on("close", () => channel.close());
  stream.on("error", () => channel.close());
  if (stream.destroyed) channel.close();
  else stream.resume(); // it may have been paused until there was somebody to read
}
