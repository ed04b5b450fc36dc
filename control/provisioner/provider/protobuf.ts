// Protocol Buffers (proto3), as far as Terraform's plugin protocol 5 uses them: strings, bytes, bools, integers,
// messages, repeated fields, and maps from string to message. A descriptor is a plain table
//   const DynamicValue = message({ msgpack: bytes(1), json: bytes(2) });
// from which both the codec and the TypeScript types follow. Unknown fields are skipped, absent ones read as
// the proto3 zero value (a message: undefined), as the format demands.
import { ProviderError } from "./errors.ts";

const VARINT = 0;
const FIXED64 = 1;
const LENGTH_DELIMITED = 2;
const FIXED32 = 5;

interface Codec<Out, In> {
  wireType: typeof VARINT | typeof LENGTH_DELIMITED;
  read(reader: Reader): Out;
  write(writer: Writer, value: In): void;
}

export interface Field<Out, In> {
  readonly number: number;
  zero(): Out;
  /** Takes one occurrence on the wire. @returns the field's value so far */
  merge(sofar: Out, reader: Reader, wireType: number): Out;
  write(writer: Writer, value: In): void;
}
type Fields = { [name: string]: Field<unknown, never> };
export type Decoded<F extends Fields> = {
  [K in keyof F]: F[K] extends Field<infer Out, never> ? Out : never;
};
export type Encodable<F extends Fields> = {
  [K in keyof F]?: F[K] extends { write(writer: Writer, value: infer In): void } ? In : never;
};

export interface Message<F extends Fields> {
  /** @throws {ProviderError} ERR_PROVIDER_PROTOBUF when the bytes break the format or a field's type */
  decode(bytes: Uint8Array): Decoded<F>;
  encode(value: Encodable<F>): Uint8Array;
}

export function message<F extends Fields>(fields: F): Message<F> {
  const byNumber = new Map(Object.entries(fields).map(([name, field]) => [field.number, { name, field }]));
  return {
    decode(bytes) {
      const out: Record<string, unknown> = {};
      for (const [name, field] of Object.entries(fields)) out[name] = field.zero();
      const reader = new Reader(bytes);
      while (reader.remaining > 0) {
        const tag = reader.varint();
        const known = byNumber.get(tag >>> 3);
        if (tag > 0xffffffff || tag >>> 3 === 0) throw fail("a field's number is out of range");
        if (known) out[known.name] = known.field.merge(out[known.name], reader, tag & 7);
        else reader.skipValue(tag & 7);
      }
      return out as Decoded<F>;
    },
    encode(value) {
      const writer = new Writer();
      for (const [name, field] of Object.entries(fields)) {
        const item: unknown = value[name];
        if (item !== undefined) field.write(writer, item as never);
      }
      return writer.bytes();
    },
  };
}

const textDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const textEncoder = new TextEncoder();

const stringCodec: Codec<string, string> = {
  wireType: LENGTH_DELIMITED,
  read(reader) {
    try {
      return textDecoder.decode(reader.block());
    } catch (cause) {
      if (cause instanceof ProviderError) throw cause;
      throw new ProviderError("ERR_PROVIDER_PROTOBUF", "a string is not UTF-8", { cause });
    }
  },
  write: (writer, value) => writer.block(textEncoder.encode(value)),
};
const bytesCodec: Codec<Uint8Array, Uint8Array> = {
  wireType: LENGTH_DELIMITED,
  read: (reader) => reader.block(),
  write: (writer, value) => writer.block(value),
};
const boolCodec: Codec<boolean, boolean> = {
  wireType: VARINT,
  read: (reader) => reader.varint() !== 0,
  write: (writer, value) => writer.varint(value ? 1 : 0),
};
const intCodec: Codec<number, number> = {
  wireType: VARINT,
  read: (reader) => reader.varint(),
  write: (writer, value) => writer.varint(value),
};
const messageCodec = <F extends Fields>(type: Message<F>): Codec<Decoded<F>, Encodable<F>> => ({
  wireType: LENGTH_DELIMITED,
  read: (reader) => type.decode(reader.block()),
  write: (writer, value) => writer.block(type.encode(value)),
});

/** One value; written only when it differs from `zero`, except messages, whose presence counts. */
function single<Z, Out, In>(number: number, codec: Codec<Out, In>, zero: Z, empty: (value: In) => boolean) {
  const field: Field<Out | Z, In> = {
    number,
    zero: () => zero,
    merge(_, reader, wireType) {
      expect(wireType, codec.wireType);
      return codec.read(reader);
    },
    write(writer, value) {
      if (empty(value)) return;
      writer.tag(number, codec.wireType);
      codec.write(writer, value);
    },
  };
  return field;
}

function many<Out, In>(number: number, codec: Codec<Out, In>): Field<Out[], In[]> {
  return {
    number,
    zero: () => [],
    merge(sofar, reader, wireType) {
      expect(wireType, codec.wireType);
      sofar.push(codec.read(reader));
      return sofar;
    },
    write(writer, values) {
      for (const value of values) {
        writer.tag(number, codec.wireType);
        codec.write(writer, value);
      }
    },
  };
}

export const string = (number: number) => single(number, stringCodec, "", (value) => value === "");
export const bytes = (number: number) =>
  single(number, bytesCodec, new Uint8Array(), (value) => value.length === 0);
export const bool = (number: number) => single(number, boolCodec, false, (value) => !value);
/** Integers and enums from 0 to 2^53 - 1; negative ones do not occur in this protocol's requests. */
export const int = (number: number) => single(number, intCodec, 0, (value) => value === 0);
export const nested = <F extends Fields>(number: number, type: Message<F>) =>
  single(number, messageCodec(type), undefined, () => false);
export const strings = (number: number) => many(number, stringCodec);
/** Repeated bytes, or repeated messages already encoded: the two look the same on the wire. */
export const repeatedBytes = (number: number) => many(number, bytesCodec);
export const repeated = <F extends Fields>(number: number, type: Message<F>) =>
  many(number, messageCodec(type));

/** A map from string to an already encoded message: on the wire, repeated {1: key, 2: value}. */
export function bytesMap(number: number): Field<Map<string, Uint8Array>, ReadonlyMap<string, Uint8Array>> {
  const entry = message({ key: string(1), value: bytes(2) });
  return {
    number,
    zero: () => new Map(),
    merge(sofar, reader, wireType) {
      expect(wireType, LENGTH_DELIMITED);
      const { key, value } = entry.decode(reader.block());
      return sofar.set(key, value);
    },
    write(writer, values) {
      for (const [key, value] of values) {
        writer.tag(number, LENGTH_DELIMITED);
        writer.block(entry.encode({ key, value }));
      }
    },
  };
}

const fail = (text: string) => new ProviderError("ERR_PROVIDER_PROTOBUF", text);

function expect(wireType: number, wanted: number): void {
  if (wireType !== wanted) throw fail(`wire type ${wireType} where ${wanted} belongs`);
}

class Reader {
  #bytes: Uint8Array;
  #offset = 0;
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get remaining(): number {
    return this.#bytes.length - this.#offset;
  }

  varint(): number {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (this.remaining < 1) throw fail("a number is cut short");
      const byte = this.#bytes[this.#offset++];
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) {
        if (value > Number.MAX_SAFE_INTEGER) throw fail("a number is above 2^53 - 1");
        return value;
      }
    }
    throw fail("a number has more than ten bytes");
  }

  /** A view, not a copy. */
  block(): Uint8Array {
    const length = this.varint();
    if (length > this.remaining) throw fail(`${length} bytes wanted, ${this.remaining} left`);
    const out = this.#bytes.subarray(this.#offset, this.#offset + length);
    this.#offset += length;
    return out;
  }

  skipValue(wireType: number): void {
    if (wireType === VARINT) {
      // A field of ours never carries it, so its size is nobody's business but the format's.
      let left = 10;
      do {
        if (this.remaining < 1 || left-- === 0) throw fail("a number is cut short");
      } while (this.#bytes[this.#offset++] >= 0x80);
    } else if (wireType === LENGTH_DELIMITED) this.block();
    else if (wireType === FIXED64 || wireType === FIXED32) {
      const width = wireType === FIXED64 ? 8 : 4;
      if (this.remaining < width) throw fail("a fixed number is cut short");
      this.#offset += width;
    } else throw fail(`wire type ${wireType} is not known`);
  }
}

class Writer {
  #parts: Uint8Array[] = [];
  #length = 0;

  tag(number: number, wireType: number): void {
    this.varint(number * 8 + wireType);
  }

  varint(value: number): void {
    const out: number[] = [];
    let rest = value;
    for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) out.push((rest % 0x80) | 0x80);
    out.push(rest);
    this.#push(Uint8Array.from(out));
  }

  block(value: Uint8Array): void {
    this.varint(value.length);
    this.#push(value);
  }

  bytes(): Uint8Array {
    const out = new Uint8Array(this.#length);
    let offset = 0;
    for (const part of this.#parts) {
      out.set(part, offset);
      offset += part.length;
    }
    return out;
  }

  #push(part: Uint8Array): void {
    this.#parts.push(part);
    this.#length += part.length;
  }
}
