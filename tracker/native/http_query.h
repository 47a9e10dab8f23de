/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The queries of the HTTP tracker protocol, read without a copy.
 *
 * The rules are those of tracker/wire_http.py.
 */
#ifndef NARSWARM_HTTP_QUERY_H
#define NARSWARM_HTTP_QUERY_H

#include "swarms.h"

/* What is wrong with a query: a failure reason. */
struct http_complaint {
    char text[80];
    int size; /* 0: nothing */
};

/* Read the query of an announce, apart from the address; see `parse_announce`. */
bool http_read_announce(const uint8_t *query, size_t size, struct swarms_request *request,
                        bool *compact, struct http_complaint *complaint);

/* Read the infohashes of a scrape, each once; see `parse_scrape`. Returns how many, or 0.
 * hashes: room for SWARMS_MAX_SCRAPE and one more, where the next infohash is read to before it is
 *   known to be another one. */
size_t http_read_scrape(const uint8_t *query, size_t size, uint8_t *hashes,
                        struct http_complaint *complaint);

#endif
