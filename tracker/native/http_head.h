/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Heads of HTTP requests: where they end, whether they are plain announces or scrapes, and whose.
 *
 * Nothing here does input or output.
 */
#ifndef NARSWARM_HTTP_HEAD_H
#define NARSWARM_HTTP_HEAD_H

#include "swarms.h"

#define HTTP_MAX_HEAD 16384  /* request line and fields of one request */
#define HTTP_MAX_LINE 8190   /* request line; these three are gunicorn's limits in server.py */
#define HTTP_MAX_FIELDS 50
#define HTTP_MAX_FIELD 2048

enum http_scanned {
    HTTP_MORE,      /* the head isn't complete */
    HTTP_WHOLE,     /* it is */
    HTTP_MALFORMED, /* it never will be: control characters, or lines that don't end in CRLF */
};

/* Look for the end of a head.
 * seen: how many bytes were looked at before; updated. With HTTP_WHOLE the length of the head. */
enum http_scanned http_scan(const uint8_t *data, size_t size, size_t *seen);

/* An announce or a scrape, as far as HTTP is concerned. Pointers are into the head. */
struct http_request {
    bool scrape, head, keep_alive, old; /* old: HTTP/1.0 */
    const uint8_t *query;
    size_t query_size;
    bool forwarded;                     /* there was X-Forwarded-For */
    char forwarded_for[HTTP_MAX_HEAD];  /* all of them, joined by commas */
    size_t forwarded_size;
};

/* Read a whole head; false when it isn't a plain announce or scrape without a body, which includes
 * everything that is doubtful: somebody else reads, or refuses, it. */
bool http_read(const uint8_t *data, size_t size, struct http_request *request);

/* Whose X-Forwarded-For is believed. */
struct http_proxies {
    size_t count;
    struct swarms_network networks[];
};

bool http_trusts(const struct http_proxies *proxies, const uint8_t *address, size_t address_bytes);

/* Which address a request comes from; see `Policy.client_address`. Writes 4 or 16 bytes and returns
 * how many, or 0: a trusted proxy did not say for whom it asks. */
size_t http_client_address(const struct http_proxies *proxies, const uint8_t *remote,
                           size_t remote_bytes, const char *forwarded, size_t forwarded_size,
                           uint8_t address[16]);

/* An address as a socket tells it, IPv4 out of IPv6. Writes 4 or 16 bytes, and returns how many. */
size_t http_normal_address(const uint8_t *raw, size_t raw_bytes, uint8_t address[16]);

#endif
