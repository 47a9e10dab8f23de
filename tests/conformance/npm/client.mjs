// SPDX-License-Identifier: GPL-3.0-or-later
// client.mjs ANNOUNCE-URL INFOHASH: three clients of npm's bittorrent-tracker start, update, complete,
// scrape and stop one after the other; prints a JSON list of what each of them is told.
import Client from 'bittorrent-tracker'

const [announce, infoHash] = process.argv.slice(2)
const seen = []

function client (port) {
  const made = new Client({
    announce: [announce],
    infoHash,
    peerId: Buffer.from(`-NS0001-${String(port).padStart(12, '0')}`),
    port,
    wrtc: false
  })
  made.on('warning', error => fail(error))
  made.on('error', error => fail(error))
  return made
}

function fail (error) {
  console.error(error)
  process.exit(1)
}

// What is told after an action: counts, and the peers that come with them.
function told (from, name, action, event = 'update') {
  return new Promise(resolve => {
    const peers = []
    const onPeer = peer => peers.push(peer)
    from.on('peer', onPeer)
    from.once(event, data => {
      // Peers are told in the same turn, after the counts.
      setImmediate(() => {
        from.removeListener('peer', onPeer)
        const { complete, incomplete } = data
        const more = event === 'scrape' ? { downloaded: data.downloaded } : { peers: peers.sort() }
        seen.push({ name, complete, incomplete, ...more })
        resolve()
      })
    })
    action()
  })
}

const one = client(6001)
const two = client(6002)
const three = client(6003)
await told(one, 'one starts', () => one.start({ left: 100 }))
await told(one, 'one updates', () => one.update({ left: 50 }))
await told(one, 'one completes', () => one.complete({ left: 0 }))
await told(one, 'one scrapes', () => one.scrape(), 'scrape')
await told(two, 'two starts', () => two.start({ left: 2 ** 40 }))
await told(three, 'three starts', () => three.start())
await told(three, 'three wants one peer', () => three.update({ numwant: 1 }))
await told(three, 'three completes, not knowing its size', () => three.complete())
await told(two, 'two scrapes', () => two.scrape(), 'scrape')
await told(two, 'two stops', () => two.stop())
await told(three, 'three stops', () => three.stop())
await told(one, 'one scrapes again', () => one.scrape(), 'scrape')
console.log(JSON.stringify(seen))
process.exit(0)
