// MessagePack as Terraform's plugin protocol uses it for values (the `msgpack` field of DynamicValue):
//   object and block   map with every attribute and block name present
//   map                map with string keys
//   list, set          array
//   null               nil
//   unknown            any ext value; written as fixext1 type 0. Ext 12 carries refinements, ignored here
//   number             int, float, or decimal text when neither is exact
// Reading is led by the type, so nesting is bounded by the schema and every count is checked against the bytes
// that are left before anything is allocated.
import { ProviderError } from "./errors.ts";
import {
  ExactNumber,
  isObject,
  type ObjectType,
  objectValue,
  type Type,
  UNKNOWN,
  type Value,
} from "./value.ts";

const fail = (message: string) => new ProviderError("ERR_PROVIDER_MSGPACK", message);

/** @throws {ProviderError} ERR_PROVIDER_MSGPACK unless `bytes` is exactly one value of `type` */
export function decodeMsgpack(bytes: Uint8Array, type: Type): Value {
  const reader = new Reader(bytes);
  const value = reader.value(type);
  if (reader.remaining > 0) throw fail(`${reader.remaining} bytes behind the value`);
  return value;
}

/** @throws {ProviderError} ERR_PROVIDER_MSGPACK when `value` is not of `type` */
export function encodeMsgpack(value: Value, type: Type): Uint8Array {
  const writer = new Writer();
  writer.value(value, type);
  return writer.bytes();
}

class Reader {
  #view: DataView;
  #bytes: Uint8Array;
  #offset = 0;
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get remaining(): number {
    return this.#bytes.length - this.#offset;
  }

  value(type: Type): Value {
    const lead = this.#peek();
    if (lead === 0xc0) {
      this.#skip(1);
      return null;
    }
    if ((lead >= 0xd4 && lead <= 0xd8) || (lead >= 0xc7 && lead <= 0xc9)) return this.#unknown();
    if (type === "string") return this.#text();
    if (type === "number") return this.#number();
    if (type === "bool") {
      this.#skip(1);
      if (lead === 0xc2 || lead === 0xc3) return lead === 0xc3;
      throw fail(`byte ${lead} is not a bool`);
    }
    if (type[0] === "object") return this.#object(type[1]);
    const element = type[1];
    if (type[0] === "map") {
      const entries: [string, Value][] = [];
      for (let left = this.#mapCount(); left > 0; left--) entries.push([this.#text(), this.value(element)]);
      return objectValue(entries);
    }
    const items: Value[] = [];
    for (let left = this.#arrayCount(); left > 0; left--) items.push(this.value(element));
    return items;
  }

  #object(fields: ObjectType): Value {
    const out = objectValue();
    for (let left = this.#mapCount(); left > 0; left--) {
      const name = this.#text();
      if (!Object.hasOwn(fields, name)) throw fail(`no attribute is called ${JSON.stringify(name)}`);
      if (Object.hasOwn(out, name)) throw fail(`attribute ${name} comes twice`);
      out[name] = this.value(fields[name]);
    }
    for (const name of Object.keys(fields))
      if (!Object.hasOwn(out, name)) throw fail(`attribute ${name} is missing`);
    return out;
  }

  #unknown(): typeof UNKNOWN {
    const lead = this.#u8();
    const length = lead >= 0xd4 ? 1 << (lead - 0xd4) : this.#uint(1 << (lead - 0xc7));
    this.#skip(length + 1); // the type byte comes behind the length
    return UNKNOWN;
  }

  #number(): number | ExactNumber {
    const lead = this.#peek();
    if ((lead >= 0xa0 && lead <= 0xbf) || (lead >= 0xd9 && lead <= 0xdb)) return decimal(this.#text());
    this.#skip(1);
    if (lead < 0x80) return lead;
    if (lead >= 0xe0) return lead - 0x100;
    const at = this.#offset;
    switch (lead) {
      case 0xca:
        this.#skip(4);
        return this.#view.getFloat32(at);
      case 0xcb:
        this.#skip(8);
        return this.#view.getFloat64(at);
      case 0xcc:
      case 0xcd:
      case 0xce:
        return this.#uint(1 << (lead - 0xcc));
      case 0xcf:
        this.#skip(8);
        return whole(this.#view.getBigUint64(at));
      case 0xd0:
        this.#skip(1);
        return this.#view.getInt8(at);
      case 0xd1:
        this.#skip(2);
        return this.#view.getInt16(at);
      case 0xd2:
        this.#skip(4);
        return this.#view.getInt32(at);
      case 0xd3:
        this.#skip(8);
        return whole(this.#view.getBigInt64(at));
      default:
        throw fail(`byte ${lead} is not a number`);
    }
  }

  #text(): string {
    const lead = this.#u8();
    let length: number;
    if (lead >= 0xa0 && lead <= 0xbf) length = lead & 0x1f;
    else if (lead >= 0xd9 && lead <= 0xdb) length = this.#uint(1 << (lead - 0xd9));
    else throw fail(`byte ${lead} is not a string`);
    const start = this.#offset;
    this.#skip(length);
    try {
      return utf8.decode(this.#bytes.subarray(start, this.#offset));
    } catch (cause) {
      throw new ProviderError("ERR_PROVIDER_MSGPACK", "a string is not UTF-8", { cause });
    }
  }

  #arrayCount(): number {
    const lead = this.#u8();
    if (lead >= 0x90 && lead <= 0x9f) return this.#count(lead & 0x0f, 1);
    if (lead === 0xdc || lead === 0xdd) return this.#count(this.#uint(lead === 0xdc ? 2 : 4), 1);
    throw fail(`byte ${lead} is not a list`);
  }

  #mapCount(): number {
    const lead = this.#u8();
    if (lead >= 0x80 && lead <= 0x8f) return this.#count(lead & 0x0f, 2);
    if (lead === 0xde || lead === 0xdf) return this.#count(this.#uint(lead === 0xde ? 2 : 4), 2);
    throw fail(`byte ${lead} is not a map`);
  }

  #count(count: number, leastBytesEach: number): number {
    if (count * leastBytesEach > this.remaining)
      throw fail(`${count} items can't be in ${this.remaining} bytes`);
    return count;
  }

  #peek(): number {
    if (this.remaining < 1) throw fail("the value is cut short");
    return this.#bytes[this.#offset];
  }

  #u8(): number {
    const byte = this.#peek();
    this.#offset++;
    return byte;
  }

  #uint(width: number): number {
    const at = this.#offset;
    this.#skip(width);
    if (width === 1) return this.#view.getUint8(at);
    return width === 2 ? this.#view.getUint16(at) : this.#view.getUint32(at);
  }

  #skip(count: number): void {
    if (this.remaining < count) throw fail(`${count} bytes wanted, ${this.remaining} left`);
    this.#offset += count;
  }
}

// ignoreBOM: a leading U+FEFF is a character of the value, not a mark to swallow.
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const toUtf8 = new TextEncoder();

function whole(value: bigint): number | ExactNumber {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : new ExactNumber(String(value));
}

function decimal(text: string): number | ExactNumber {
  if (!/^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$/.test(text)) throw fail("a number's text is not decimal");
  return new ExactNumber(text);
}

class Writer {
  #buffer = new Uint8Array(256);
  #view = new DataView(this.#buffer.buffer);
  #length = 0;

  bytes(): Uint8Array {
    return this.#buffer.slice(0, this.#length);
  }

  value(value: Value, type: Type): void {
    if (value === null) this.#u8(0xc0);
    else if (value === UNKNOWN) for (const byte of [0xd4, 0, 0]) this.#u8(byte);
    else if (type === "string" && typeof value === "string") this.#text(value);
    else if (type === "bool" && typeof value === "boolean") this.#u8(value ? 0xc3 : 0xc2);
    else if (type === "number" && typeof value === "number") this.#number(value);
    else if (type === "number" && value instanceof ExactNumber) this.#text(value.text);
    else if (typeof type === "string") throw fail(`a ${type} was expected`);
    else if (type[0] === "object" && isObject(value)) this.#object(value, type[1]);
    else if (type[0] === "map" && isObject(value)) {
      const keys = Object.keys(value);
      this.#head(0x80, 0xde, keys.length);
      for (const key of keys) {
        this.#text(key);
        this.value(value[key], type[1]);
      }
    } else if ((type[0] === "list" || type[0] === "set") && Array.isArray(value)) {
      this.#head(0x90, 0xdc, value.length);
      for (const item of value) this.value(item, type[1]);
    } else throw fail(`a ${type[0]} was expected`);
  }

  #object(value: { [name: string]: Value }, fields: ObjectType): void {
    const names = Object.keys(fields);
    const extra = Object.keys(value).find((name) => !Object.hasOwn(fields, name));
    if (extra !== undefined) throw fail(`no attribute is called ${JSON.stringify(extra)}`);
    this.#head(0x80, 0xde, names.length);
    for (const name of names) {
      if (!Object.hasOwn(value, name)) throw fail(`attribute ${name} is missing`);
      this.#text(name);
      this.value(value[name], fields[name]);
    }
  }

  #text(text: string): void {
    const bytes = toUtf8.encode(text);
    if (bytes.length < 32) this.#u8(0xa0 | bytes.length);
    else if (bytes.length < 0x100) {
      this.#u8(0xd9);
      this.#u8(bytes.length);
    } else if (bytes.length < 0x10000) {
      this.#u8(0xda);
      this.#u16(bytes.length);
    } else {
      this.#u8(0xdb);
      this.#u32(bytes.length);
    }
    this.#room(bytes.length);
    this.#buffer.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  #number(value: number): void {
    const isInt = Number.isSafeInteger(value) && !Object.is(value, -0);
    if (isInt && value >= -32 && value < 0x80) this.#u8(value & 0xff);
    else {
      this.#u8(isInt ? 0xd3 : 0xcb);
      this.#room(8);
      if (isInt) this.#view.setBigInt64(this.#length, BigInt(value));
      else this.#view.setFloat64(this.#length, value);
      this.#length += 8;
    }
  }

  #head(fixed: number, wide: number, count: number): void {
    if (count < 16) this.#u8(fixed | count);
    else if (count < 0x10000) {
      this.#u8(wide);
      this.#u16(count);
    } else {
      this.#u8(wide + 1);
      this.#u32(count);
    }
  }

  #u8(value: number): void {
    this.#room(1);
    this.#buffer[this.#length++] = value;
  }

  #u16(value: number): void {
    this.#room(2);
    this.#view.setUint16(this.#length, value);
    this.#length += 2;
  }

  #u32(value: number): void {
    this.#room(4);
    this.#view.setUint32(this.#length, value);
    this.#length += 4;
  }

  #room(count: number): void {
    if (this.#length + count <= this.#buffer.length) return;
    const grown = new Uint8Array(Math.max(this.#buffer.length * 2, this.#length + count));
    grown.set(this.#buffer.subarray(0, this.#length));
    this.#buffer = grown;
    this.#view = new DataView(grown.buffer);
  }
}
