/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The tracker over UDP (BEP 15, 41): what is answered to a datagram, and a loop that serves sockets.
 * docs/tracker-wire.md has the layouts and the rules.
 */
#ifndef NARSWARM_UDP_H
#define NARSWARM_UDP_H

#include "connection_id.h"
#include "swarms.h"

#define UDP_MAX_REQUEST 2048 /* bytes that are read of a datagram */
#define UDP_MAX_REPLY 1472   /* what IPv4 carries unfragmented over Ethernet */

/* What became of the datagrams of one batch; actions from SWARMS_CONNECT to SWARMS_SCRAPE. */
struct udp_tally {
    uint32_t requests[2][3][SWARMS_OUTCOMES];
};

/* Answer one datagram; returns the bytes of the reply, or 0 for silence. The swarms are locked.
 * Whoever didn't prove that the address (4 or 16 bytes) is its own gets nothing, or a connection id
 * in as many bytes as it sent. */
size_t udp_respond(struct swarms *swarms, const struct connection_ids *ids, const uint8_t *packet,
                   size_t size, const uint8_t *address, size_t address_bytes, int64_t now,
                   uint8_t reply[UDP_MAX_REPLY], struct udp_tally *tally);

/* Hand over a tally to the counters. */
void udp_count(struct swarms *swarms, const struct udp_tally *tally, double seconds);

struct udp_server;

/* Prepare to serve bound sockets, whose descriptors must stay open; NULL with errno set. A socket
 * for any address answers from the address that was asked. */
struct udp_server *udp_open(struct swarms *swarms, const uint8_t key[CONNECTION_KEY_BYTES],
                            const int *descriptors, size_t count);

/* Serve until udp_stop, then 0; or the errno of what broke, and may be called again. Only one thread
 * may be in here. */
int udp_serve(struct udp_server *server);

/* Have udp_serve return, after the batch at hand; also one that is called later. */
void udp_stop(struct udp_server *server);

/* Nobody may be in udp_serve. */
void udp_close(struct udp_server *server);

#endif
