/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The HTTP tracker protocol in C: queries in, bencoded replies out.
 *
 * The rules are those of tracker/wire_http.py; tests compare every byte.
 * Nothing here does input or output.
 */
#ifndef NARSWARM_HTTP_WIRE_H
#define NARSWARM_HTTP_WIRE_H

#include "http_head.h"

#define HTTP_MAX_BODY (256u << 10) /* of a reply: SWARMS_MAX_WANTED peers as dictionaries fit */

/* What an answer is built in. */
struct http_scratch {
    uint8_t peers4[SWARMS_MAX_WANTED * SWARMS_PEER4_BYTES];
    uint8_t peers6[SWARMS_MAX_WANTED * SWARMS_PEER6_BYTES];
    uint8_t ids4[SWARMS_MAX_WANTED * SWARMS_HASH_BYTES];
    uint8_t ids6[SWARMS_MAX_WANTED * SWARMS_HASH_BYTES];
};

/* Answer a query, and count it.
 * address_bytes: 0 when the address isn't known (http_client_address).
 * Writes at most HTTP_MAX_BODY bytes to `body` and returns how many. */
size_t http_answer(struct swarms *swarms, struct http_scratch *scratch, bool scrape,
                   const uint8_t *query, size_t query_size, const uint8_t *address,
                   size_t address_bytes, int64_t now, uint8_t *body);

#endif
