// Records, envelopes and seeds, as docs/wire-format.md describes them.

import { createHash } from 'node:crypto'
import { privateKeyFromRaw, publicKeyFromRaw } from '@libp2p/crypto/keys'

export class Refused extends Error {}

export const sha256 = (...parts) => {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part)
  return hash.digest()
}

function require (condition, why) {
  if (!condition) throw new Refused(why)
}

// --- MessagePack, each value in its one shortest form

const be = (bytes, number) => {
  const out = Buffer.alloc(bytes)
  let left = BigInt(number)
  for (let at = bytes - 1; at >= 0; at--, left >>= 8n) out[at] = Number(left & 0xffn)
  return out
}

function header (length, [fixed, below], ...sized) {
  if (length < below) return Buffer.of(fixed | length)
  const [code, bytes] = sized.find(([, bytes]) => length < 2 ** (8 * bytes))
  return Buffer.concat([Buffer.of(code), be(bytes, length)])
}

const pack = {
  nil: () => Buffer.of(0xc0),
  uint: number => {
    if (number < 128) return Buffer.of(Number(number))
    const [code, bytes] = [[0xcc, 1], [0xcd, 2], [0xce, 4], [0xcf, 8]].find(([, b]) => BigInt(number) < 1n << BigInt(8 * b))
    return Buffer.concat([Buffer.of(code), be(bytes, number)])
  },
  float: number => {
    const out = Buffer.alloc(9, 0xcb)
    out.writeDoubleBE(number, 1)
    return out
  },
  text: text => {
    const raw = Buffer.from(text, 'utf8')
    return Buffer.concat([header(raw.length, [0xa0, 32], [0xd9, 1], [0xda, 2], [0xdb, 4]), raw])
  },
  bytes: raw => Buffer.concat([header(raw.length, [0, 0], [0xc4, 1], [0xc5, 2], [0xc6, 4]), raw]),
  array: items => Buffer.concat([header(items.length, [0x90, 16], [0xdc, 2], [0xdd, 4]), ...items]),
  map: entries => Buffer.concat([header(entries.length, [0x80, 16], [0xde, 2], [0xdf, 4]), ...entries.flat()])
}

class Reader {
  constructor (raw) { this.raw = raw; this.at = 0 }

  take (length) {
    require(this.at + length <= this.raw.length, 'it ends too early')
    return this.raw.subarray(this.at, this.at += length)
  }

  number (bytes) { return this.take(bytes).reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n) }

  sized (what, code, fixed, below, sizes) {
    if (below && code >= fixed && code < fixed + below) return code - fixed
    require(code in sizes, `${what} was expected`)
    return Number(this.number(sizes[code]))
  }

  uint () {
    const [code] = this.take(1)
    if (code < 128) return BigInt(code)
    const bytes = { 0xcc: 1, 0xcd: 2, 0xce: 4, 0xcf: 8 }[code]
    require(bytes, 'a number was expected')
    return this.number(bytes)
  }

  float () {
    require(this.take(1)[0] === 0xcb, 'a float of 64 bits was expected')
    return this.take(8).readDoubleBE()
  }

  text () {
    const length = this.sized('text', this.take(1)[0], 0xa0, 32, { 0xd9: 1, 0xda: 2, 0xdb: 4 })
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(this.take(length))
    } catch (error) {
      throw new Refused(error instanceof Refused ? error.message : 'a text is not UTF-8')
    }
  }

  bytes () { return Buffer.from(this.take(this.sized('bytes', this.take(1)[0], 0, 0, { 0xc4: 1, 0xc5: 2, 0xc6: 4 }))) }

  items () { return this.sized('an array', this.take(1)[0], 0x90, 16, { 0xdc: 2, 0xdd: 4 }) }

  entries () { return this.sized('a map', this.take(1)[0], 0x80, 16, { 0xde: 2, 0xdf: 4 }) }

  nil () { return this.raw[this.at] === 0xc0 && (this.at++, true) }
}

// --- types: how to read one, within its bounds, and how to write it

const between = (low, high) => ({
  read: reader => {
    const number = reader.uint()
    require(number >= low && number <= high, `a number beyond ${low} to ${high}`)
    return number
  },
  write: pack.uint
})
const u32 = between(0n, (1n << 32n) - 1n)
const float = { read: reader => reader.float(), write: pack.float }
const text = most => ({
  read: reader => {
    const found = reader.text()
    require([...found].length <= most, `a text of more than ${most} characters`)
    return found
  },
  write: pack.text
})
const name = text(64)
const bytes = (low, high = low) => ({
  read: reader => {
    const found = reader.bytes()
    require(found.length >= low && found.length <= high, `bytes beyond ${low} to ${high}`)
    return found
  },
  write: pack.bytes
})
const hash = bytes(32)
const optional = type => ({
  read: reader => reader.nil() ? null : type.read(reader),
  write: value => value === null ? pack.nil() : type.write(value)
})
const list = (type, low, high) => ({
  read: reader => {
    const length = reader.items()
    require(length >= low && length <= high, `a list beyond ${low} to ${high}`)
    return Array.from({ length }, () => type.read(reader))
  },
  write: values => pack.array(values.map(type.write))
})
const struct = fields => ({
  read: reader => {
    require(reader.items() === Object.keys(fields).length, 'another number of fields')
    return Object.fromEntries(Object.entries(fields).map(([key, type]) => [key, type.read(reader)]))
  },
  write: value => pack.array(Object.entries(fields).map(([key, type]) => type.write(value[key])))
})
const map = (key, value, most) => ({
  read: reader => {
    const length = reader.entries()
    require(length <= most, `more than ${most} entries`)
    return Object.fromEntries(Array.from({ length }, () => [key.read(reader), value.read(reader)]))
  },
  write: given => pack.map(Object.entries(given).map(([k, v]) => [key.write(k), value.write(v)]))
})

const packed = bytes(0, 4 * 8192)
const completion = struct({ tokens: packed, logprobs: packed, text: text(65_536) })
const group = struct({
  task: name,
  taskFingerprint: name,
  index: u32,
  problemSeed: between(0n, (1n << 63n) - 1n),
  parents: list(hash, 0, 64),
  vote: optional(between(0n, 64n)),
  completions: list(completion, 2, 64)
})
const FINDINGS = ['produced', 'not produced', 'withheld', 'undecided']
const verdict = struct({ record: hash, index: u32, finding: name, tokens: u32, bits: float, statistic: float })
const fields = {
  version: u32,
  swarm: name,
  author: bytes(33),
  round: u32,
  stage: name,
  beacon: bytes(0, 8),
  promptFormat: name,
  policyVersion: u32,
  weights: hash,
  tokenizerFingerprint: name,
  temperature: float,
  groups: list(group, 0, 64),
  verdicts: list(verdict, 0, 16)
}
const rotation = struct({ old: bytes(33), fromRound: u32, signature: bytes(64) })
const RECORDS = { 4: struct(fields), 5: struct({ ...fields, rotations: list(rotation, 1, 4) }) }
const ENVELOPE = struct({ payload: bytes(0, 1 << 20), signature: bytes(64) })

function decode (type, raw) {
  const reader = new Reader(Buffer.from(raw))
  const found = type.read(reader)
  require(reader.at === reader.raw.length, 'more follows')
  require(type.write(found).equals(reader.raw), 'it is not in its one encoding')
  return found
}

// --- signatures: secp256k1 over SHA-256; the library has them in DER, the wire as r and s

const ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n
const toNumber = raw => BigInt('0x' + Buffer.from(raw).toString('hex'))

function toDer (signature) {
  const parts = [signature.subarray(0, 32), signature.subarray(32)].map(number => {
    let bare = Buffer.from(number)
    while (bare.length > 1 && bare[0] === 0) bare = bare.subarray(1)
    if (bare[0] & 0x80) bare = Buffer.concat([Buffer.of(0), bare])
    return Buffer.concat([Buffer.of(2, bare.length), bare])
  })
  const both = Buffer.concat(parts)
  return Buffer.concat([Buffer.of(0x30, both.length), both])
}

function fromDer (der) {
  const numbers = []
  for (let at = 2; at < der.length; at += 2 + der[at + 1]) {
    numbers.push(be(32, toNumber(der.subarray(at + 2, at + 2 + der[at + 1]))))
  }
  return Buffer.concat(numbers)
}

export async function sign (secret, message) {
  const signature = fromDer(Buffer.from(await privateKeyFromRaw(secret).sign(message)))
  const s = toNumber(signature.subarray(32))
  return s <= ORDER / 2n ? signature : Buffer.concat([signature.subarray(0, 32), be(32, ORDER - s)])
}

export async function holds (author, signature, message) {
  const [r, s] = [signature.subarray(0, 32), signature.subarray(32)].map(toNumber)
  if (r === 0n || r >= ORDER || s === 0n || s > ORDER / 2n) return false
  try {
    return await publicKeyFromRaw(author).verify(message, toDer(signature))
  } catch {
    return false // no point of the curve
  }
}

// --- records

export const nameOf = payload => sha256(payload)

export function encodeRecord (record) {
  return RECORDS[record.version].write(record)
}

export async function seal (record, secret) {
  const payload = encodeRecord(record)
  return ENVELOPE.write({ payload, signature: await sign(secret, payload) })
}

// A record whose form, bounds and signatures hold; raises Refused.
export async function open (raw) {
  require(raw.length <= (1 << 20) + 128, 'it is too long')
  const { payload, signature } = decode(ENVELOPE, raw)
  const record = decode(RECORDS[payload[0] === 0x9e ? 5 : 4], payload)
  require(record.version === (payload[0] === 0x9e ? 5n : 4n), 'another version')
  require(Number.isFinite(record.temperature) && record.temperature > 0, 'a temperature that is none')
  for (const { bits, statistic, finding } of record.verdicts) {
    require(Number.isFinite(bits) && Number.isFinite(statistic) && FINDINGS.includes(finding), 'a verdict that is none')
  }
  for (const { tokens, logprobs } of record.groups.flatMap(one => one.completions)) {
    require(tokens.length > 0 && tokens.length === logprobs.length && tokens.length % 4 === 0, 'tokens and log-probs')
    for (let at = 0; at < tokens.length; at += 4) {
      const logprob = logprobs.readFloatLE(at)
      require(tokens.readInt32LE(at) >= 0 && Number.isFinite(logprob) && logprob <= 0, 'a token or log-prob that is none')
    }
  }
  require(await holds(record.author, signature, payload), 'its author did not sign it')
  await checkRotations(record)
  return { record, name: nameOf(payload) }
}

async function checkRotations ({ rotations = [], author, swarm }) {
  const authors = [...rotations.map(one => one.old), author]
  require(new Set(authors.map(one => one.toString('hex'))).size === authors.length, 'a key comes twice')
  for (const [at, { old, fromRound, signature }] of rotations.entries()) {
    const said = ['rlswarm_jax rotation 1', swarm].map(pack.text)
    const statement = pack.array([...said, pack.bytes(authors[at + 1]), pack.uint(fromRound)])
    require(await holds(old, signature, statement), 'a key that did not give its place away')
  }
}

// --- what two nodes ask each other

const announcement = struct({ hash, size: between(1n, (1n << 20n) + 128n) })
const request = struct({ swarm: name, hash: optional(hash), known: list(hash, 0, 3) })
const reply = struct({ records: list(bytes(0, (1 << 20) + 128), 0, 3), addresses: list(text(256), 0, 32) })
const hello = struct({ agreement: bytes(0, 32), rules: map(text(128), text(256), 64) })

// Messages of a protocol need not be in their one encoding, and are taken in it.
export const messages = Object.fromEntries(
  Object.entries({ announcement, request, reply, hello }).map(([key, type]) => [key, {
    encode: type.write,
    decode: raw => decode(type, raw)
  }])
)

// --- randomness, version 1

export function draw (domain, ...fields) {
  const parts = [Buffer.from(domain)]
  for (const field of fields) {
    const raw = Buffer.isBuffer(field) ? field : Buffer.from(String(field), 'utf8')
    const length = Buffer.alloc(4)
    length.writeUInt32LE(raw.length)
    parts.push(length, raw)
  }
  const digest = sha256(...parts)
  return {
    digest,
    seed: digest.readBigUInt64LE(0) >> 1n,
    key: [digest.readUInt32LE(0), digest.readUInt32LE(4)]
  }
}
