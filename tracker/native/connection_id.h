/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Connection ids of UDP: the same as those of `ConnectionIds` in tracker/wire_udp.py, so that
 * trackers with copies of one key know each other's, whichever engine they have.
 */
#ifndef NARSWARM_CONNECTION_ID_H
#define NARSWARM_CONNECTION_ID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONNECTION_KEY_BYTES 32
#define CONNECTION_ID_BYTES 8

struct connection_ids {
    uint32_t state[8]; /* of BLAKE2s after the key */
};

void connection_ids_init(struct connection_ids *ids, const uint8_t key[CONNECTION_KEY_BYTES]);

/* Make an id for an address of 4 or 16 bytes. */
void connection_id_issue(const struct connection_ids *ids, const uint8_t *address,
                         size_t address_bytes, int64_t now, uint8_t id[CONNECTION_ID_BYTES]);

/* Whether an id was issued to this address and isn't too old. */
bool connection_id_holds(const struct connection_ids *ids, const uint8_t *address,
                         size_t address_bytes, int64_t now, const uint8_t id[CONNECTION_ID_BYTES]);

#endif
