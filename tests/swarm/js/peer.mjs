// A standard js-libp2p node in the gossip: node peer.mjs <secp256k1 key in hex> <multiaddr to dial> <topic>
//
// Publishes the data it is given as lines of base64 on stdin, once the peer it dialed subscribes to the topic.
// Prints what it receives as lines of JSON: {"from": "<peer id>", "data": "<base64>"}. Ends when stdin does.

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

const [key, address, topic] = process.argv.slice(2)

// The specification's default: peer id, then sequence number. This library's own has the bare key in place of the
// peer id, so that IHAVE and IWANT would name messages that the other side does not know.
function messageId (message) {
  const sequenceNumber = Buffer.alloc(8)
  sequenceNumber.writeBigUInt64BE(message.sequenceNumber)
  return Buffer.concat([message.from.toMultihash().bytes, sequenceNumber])
}

const node = await createLibp2p({
  privateKey: privateKeyFromRaw(Buffer.from(key, 'hex')), // of secp256k1, as it has 32 bytes
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    pubsub: gossipsub({ globalSignaturePolicy: 'StrictSign', msgIdFn: messageId })
  }
})
const { pubsub } = node.services

pubsub.addEventListener('message', ({ detail: { from, data } }) => {
  console.log(JSON.stringify({ from: from.toString(), data: Buffer.from(data).toString('base64') }))
})
pubsub.subscribe(topic)
await node.dial(multiaddr(address))
while (pubsub.getSubscribers(topic).length === 0) {
  await once(pubsub, 'subscription-change')
}
for await (const line of createInterface({ input: process.stdin })) {
  await pubsub.publish(topic, Buffer.from(line, 'base64'))
}
await node.stop()
