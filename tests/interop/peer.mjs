// A node of a swarm in another language, by docs/wire-format.md:
//     node peer.mjs <secp256k1 key in hex> <multiaddr to dial> <swarm>
//
// Takes commands as lines of JSON on stdin, each with an `id` that its answer has, too; prints a line {"heard": ...} for
// whatever comes by gossip. It ends when stdin does. Bytes are base64 in JSON.

import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { privateKeyFromRaw } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { draw, messages, open, Refused, seal, sha256 } from './codec.mjs'

const [key, address, swarm] = process.argv.slice(2)
const secret = Buffer.from(key, 'hex')
const topic = `/rlswarm_jax/${swarm}/records/1`
const EXCHANGE = '/rlswarm_jax/exchange/2'
const RULES = '/rlswarm_jax/rules/1'
const [INLINE, ANNOUNCED] = [0, 1]
const LATEST = 3
const HELLO = { agreement: Buffer.alloc(0), rules: { plays: 'no', 'swarm.name': swarm } }

const store = new Map() // envelopes that others may fetch, by the SHA-256 of their bytes
const latest = [] // own ones, the last of them

const node = await createLibp2p({
  privateKey: privateKeyFromRaw(secret), // of secp256k1, as it has 32 bytes
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    pubsub: gossipsub({ globalSignaturePolicy: 'StrictSign', msgIdFn: messageId })
  }
})
const { pubsub } = node.services

function messageId (message) {
  const sequenceNumber = Buffer.alloc(8)
  sequenceNumber.writeBigUInt64BE(message.sequenceNumber)
  return Buffer.concat([message.from.toMultihash().bytes, sequenceNumber])
}

// --- requests: one a stream, each message behind its length as a varint

function framed (raw) {
  const length = []
  for (let left = raw.length; ; left >>= 7) {
    length.push(left < 128 ? left : (left & 127) | 128)
    if (left < 128) return Buffer.concat([Buffer.from(length), raw])
  }
}

async function receive (stream) {
  let held = Buffer.alloc(0)
  for await (const chunk of stream) {
    held = Buffer.concat([held, chunk.subarray()])
    let [length, at] = [0, 0]
    while (at < held.length && held[at] & 128) length |= (held[at] & 127) << (7 * at++)
    if (at === held.length) continue
    length |= held[at] << (7 * at++)
    if (held.length >= at + length) return held.subarray(at, at + length)
  }
  throw new Refused('the stream ended within a message')
}

async function send (stream, raw) {
  for (let rest = framed(raw); rest.length; rest = rest.subarray(1 << 16)) {
    if (!stream.send(rest.subarray(0, 1 << 16))) await once(stream, 'drain')
  }
}

async function ask (peer, protocol, raw) {
  const stream = await node.dialProtocol(peer, protocol)
  await send(stream, raw)
  const answer = await receive(stream)
  await stream.close()
  return answer
}

const exchange = async (peer, hash, known = []) =>
  messages.reply.decode(await ask(peer, EXCHANGE, messages.request.encode({ swarm, hash, known })))

async function serve (protocol, answer) {
  await node.handle(protocol, async stream => {
    try {
      await send(stream, answer(await receive(stream)))
      await stream.close()
    } catch (error) {
      stream.abort(error)
    }
  })
}

await serve(EXCHANGE, raw => {
  const asked = messages.request.decode(raw)
  if (asked.swarm !== swarm) return messages.reply.encode({ records: [], addresses: [] })
  if (asked.hash !== null) {
    const found = store.get(asked.hash.toString('hex'))
    return messages.reply.encode({ records: found ? [found] : [], addresses: [] })
  }
  const known = new Set(asked.known.map(one => one.toString('hex')))
  return messages.reply.encode({ records: latest.filter(one => !known.has(sha256(one).toString('hex'))), addresses: [] })
})
await serve(RULES, raw => messages.hello.encode(messages.hello.decode(raw) && HELLO))

// --- gossip

async function hear (from, source, data) {
  let envelope = data.subarray(1)
  if (data[0] === ANNOUNCED) {
    const { hash, size } = messages.announcement.decode(envelope)
    const { records } = await exchange(source, hash)
    if (!records.length) throw new Refused('it was announced, and is not to be had')
    envelope = records[0]
    if (BigInt(envelope.length) !== size || !sha256(envelope).equals(hash)) throw new Refused('it is not what was announced')
    store.set(hash.toString('hex'), envelope)
  } else if (data[0] !== INLINE) {
    throw new Refused('neither an envelope nor an announcement of one')
  }
  const { record, name } = await open(envelope)
  if (record.swarm !== swarm) throw new Refused('it is of another swarm')
  const sender = Buffer.from(from.toMultihash().bytes)
  if (!sender.subarray(-33).equals(record.author)) throw new Refused('its sender is not its author')
  return { envelope, record, name, kind: data[0] === ANNOUNCED ? 'announced' : 'inline' }
}

pubsub.addEventListener('gossipsub:message', async ({ detail: { propagationSource, msg } }) => {
  const heard = { from: msg.from.toString() }
  try {
    Object.assign(heard, await hear(msg.from, propagationSource, Buffer.from(msg.data)))
  } catch (error) {
    heard.refused = `${error.message}`
  }
  print({ heard })
})

// --- commands

async function say ({ record }) {
  const author = Buffer.from(node.peerId.toMultihash().bytes).subarray(-33)
  const envelope = await seal({ ...read(record), swarm, author }, secret)
  await open(envelope) // nothing invalid is ever sent
  store.set(sha256(envelope).toString('hex'), envelope)
  latest.push(envelope)
  if (latest.length > LATEST) latest.shift()
  const announced = messages.announcement.encode({ hash: sha256(envelope), size: envelope.length })
  const inline = envelope.length <= 16_384
  await pubsub.publish(topic, Buffer.concat([Buffer.of(inline ? INLINE : ANNOUNCED), inline ? envelope : announced]))
  return { envelope }
}

const commands = {
  say,
  send: async ({ data }) => { await pubsub.publish(topic, read(data)) },
  check: async ({ envelope }) => {
    try {
      const { record, name } = await open(read(envelope))
      return { record, name }
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      return { refused: error.message }
    }
  },
  fetch: async ({ hash }) => exchange(there, read(hash)),
  greet: async ({ known }) => exchange(there, null, read(known)),
  rules: async () => messages.hello.decode(await ask(there, RULES, messages.hello.encode(HELLO))),
  draw: async ({ domain, fields }) => draw(domain, ...read(fields))
}

// JSON has no bytes: {"base64": ...} stands for some. Large numbers are texts.
function read (value) {
  if (Array.isArray(value)) return value.map(read)
  if (value === null || typeof value !== 'object') return value
  if ('base64' in value) return Buffer.from(value.base64, 'base64')
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, read(one)]))
}

function print (value) {
  console.log(JSON.stringify(value, (_, one) => {
    if (typeof one === 'bigint') return one.toString()
    return one?.type === 'Buffer' ? { base64: Buffer.from(one.data).toString('base64') } : one
  }))
}

pubsub.subscribe(topic)
const { remotePeer: there } = await node.dial(multiaddr(address))
while (pubsub.getSubscribers(topic).length === 0) {
  await once(pubsub, 'subscription-change')
}
print({ listens: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const { id, ...given } = JSON.parse(line)
  commands[given.do](given).then(
    answer => print({ id, ...answer }),
    error => print({ id, failed: `${error.stack}` })
  )
}
await node.stop()
