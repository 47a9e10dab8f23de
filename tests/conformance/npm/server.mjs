// SPDX-License-Identifier: GPL-3.0-or-later
// The tracker of npm's bittorrent-tracker, on ports of loopback that it prints as JSON.
import { Server } from 'bittorrent-tracker'

const server = new Server({
  http: true,
  udp: true,
  ws: false,
  stats: false,
  // What begins with "closed" isn't tracked.
  filter: (infoHash, params, done) =>
    done(infoHash.startsWith('636c6f736564') ? new Error('not here') : null)
})
server.on('error', error => { console.error(error); process.exit(1) })
server.on('warning', () => {})
server.on('listening', () => {
  console.log(JSON.stringify({
    http: server.http.address().port,
    udp: server.udp4.address().port,
    udp6: server.udp6.address().port
  }))
})
server.listen({ http: 0, udp: 0 }, { http: '::', udp: '127.0.0.1', udp6: '::1' })
