/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Heads of HTTP requests, and the addresses that they come from; http_head.h.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "http_head.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

/* -- heads ------------------------------------------------------------------------------------ */

enum http_scanned http_scan(const uint8_t *data, size_t size, size_t *seen)
{
    for (size_t at = *seen; at < size; ++at) {
        uint8_t byte = data[at];
        bool after_cr = at > 0 && data[at - 1] == '\r';
        if (byte >= ' ' ? after_cr : after_cr != (byte == '\n'))
            return HTTP_MALFORMED;
        if (byte >= ' ')
            continue;
        if (byte == '\n') {
            if (at == 1)
                return HTTP_MALFORMED;
            if (data[at - 2] == '\n') {
                *seen = at + 1;
                return HTTP_WHOLE;
            }
        } else if (byte != '\r' && byte != '\t') {
            return HTTP_MALFORMED;
        }
    }
    *seen = size;
    return HTTP_MORE;
}

static bool is_token(uint8_t byte)
{
    return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z')
        || (byte >= 'a' && byte <= 'z') || (byte != 0 && strchr("!#$%&'*+-.^_`|~", byte) != NULL);
}

static bool named(const uint8_t *name, size_t size, const char *wanted)
{
    return size == strlen(wanted) && strncasecmp((const char *)name, wanted, size) == 0;
}

/* Take spaces and tabs off both ends. */
static void strip(const uint8_t **text, size_t *size)
{
    while (*size > 0 && (**text == ' ' || **text == '\t')) {
        ++*text;
        --*size;
    }
    while (*size > 0 && ((*text)[*size - 1] == ' ' || (*text)[*size - 1] == '\t'))
        --*size;
}

/* What a Connection field says of keeping it. */
static void read_connection(const uint8_t *value, size_t size, bool *close, bool *keep)
{
    while (size > 0) {
        const uint8_t *comma = memchr(value, ',', size);
        const uint8_t *part = value;
        size_t part_size = comma ? (size_t)(comma - value) : size;
        size -= comma ? part_size + 1 : size;
        value = comma ? comma + 1 : value;
        strip(&part, &part_size);
        *close = *close || named(part, part_size, "close");
        *keep = *keep || named(part, part_size, "keep-alive");
    }
}

/* Read the request line; false when it isn't that of a plain announce or scrape. */
static bool read_line(const uint8_t *line, size_t size, struct http_request *request)
{
    static const char announce[] = "/announce", scrape[] = "/scrape";
    if (size > HTTP_MAX_LINE - 2)
        return false;
    if (size >= 4 && memcmp(line, "GET ", 4) == 0) {
        request->head = false;
        line += 4, size -= 4;
    } else if (size >= 5 && memcmp(line, "HEAD ", 5) == 0) {
        request->head = true;
        line += 5, size -= 5;
    } else {
        return false;
    }
    if (size >= sizeof announce && memcmp(line, announce, sizeof announce - 1) == 0) {
        request->scrape = false;
        line += sizeof announce - 1, size -= sizeof announce - 1;
    } else if (size >= sizeof scrape && memcmp(line, scrape, sizeof scrape - 1) == 0) {
        request->scrape = true;
        line += sizeof scrape - 1, size -= sizeof scrape - 1;
    } else {
        return false;
    }
    const uint8_t *end = memchr(line, ' ', size);
    if (end == NULL || size - (size_t)(end - line) != sizeof " HTTP/1.1" - 1
        || memcmp(end, " HTTP/1.", 8) != 0 || (end[8] != '0' && end[8] != '1'))
        return false;
    request->old = end[8] == '0';
    request->query = line;
    request->query_size = 0;
    if (line == end)
        return true;
    if (*line != '?')
        return false;
    request->query = line + 1;
    request->query_size = (size_t)(end - line) - 1;
    for (const uint8_t *at = line; at < end; ++at)
        if (*at > '~' || *at == '#' || *at == '\t')
            return false;
    return true;
}

bool http_read(const uint8_t *data, size_t size, struct http_request *request)
{
    const uint8_t *line_end = memmem(data, size, "\r\n", 2);
    if (line_end == NULL || !read_line(data, (size_t)(line_end - data), request))
        return false;
    bool close = false, keep = false, host = false;
    unsigned fields = 0;
    const uint8_t *at = line_end + 2, *end = data + size - 2;
    request->forwarded = false;
    request->forwarded_size = 0;
    while (at < end) {
        line_end = memmem(at, (size_t)(data + size - at), "\r\n", 2);
        size_t length = (size_t)(line_end - at);
        const uint8_t *colon = memchr(at, ':', length);
        if (++fields > HTTP_MAX_FIELDS || length + 2 > HTTP_MAX_FIELD || colon == NULL
            || colon == at)
            return false;
        size_t name_size = (size_t)(colon - at);
        for (const uint8_t *byte = at; byte < colon; ++byte)
            if (!is_token(*byte))
                return false;
        for (const uint8_t *byte = colon; byte < line_end; ++byte)
            if (*byte > '~')
                return false;
        const uint8_t *value = colon + 1;
        size_t value_size = (size_t)(line_end - value);
        strip(&value, &value_size);
        switch (name_size) {
        case 4:
            if (named(at, name_size, "host")) {
                if (host)
                    return false;
                host = true;
            }
            break;
        case 6:
            if (named(at, name_size, "expect"))
                return false;
            break;
        case 7:
            if (named(at, name_size, "upgrade"))
                return false;
            break;
        case 10:
            if (named(at, name_size, "connection"))
                read_connection(value, value_size, &close, &keep);
            break;
        case 12:
            if (named(at, name_size, "content-type"))
                return false;
            break;
        case 14:
            if (named(at, name_size, "content-length"))
                return false;
            break;
        case 15:
            if (named(at, name_size, "x-forwarded-for")) {
                /* One comma and one value each: together never longer than the head. */
                if (request->forwarded)
                    request->forwarded_for[request->forwarded_size++] = ',';
                memcpy(request->forwarded_for + request->forwarded_size, value, value_size);
                request->forwarded_size += value_size;
                request->forwarded = true;
            }
            break;
        case 17:
            if (named(at, name_size, "transfer-encoding"))
                return false;
            break;
        default:
            break;
        }
        at = line_end + 2;
    }
    request->keep_alive = !close && (keep || !request->old);
    return true;
}

/* -- addresses -------------------------------------------------------------------------------- */

size_t http_normal_address(const uint8_t *raw, size_t raw_bytes, uint8_t address[16])
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    if (raw_bytes == 16 && memcmp(raw, mapped, sizeof mapped) == 0) {
        memmove(address, raw + sizeof mapped, 4);
        return 4;
    }
    memmove(address, raw, raw_bytes);
    return raw_bytes;
}

bool http_trusts(const struct http_proxies *proxies, const uint8_t *address, size_t address_bytes)
{
    for (size_t index = 0; proxies != NULL && index < proxies->count; ++index) {
        const struct swarms_network *network = &proxies->networks[index];
        size_t whole = network->prefix / 8u;
        unsigned rest = network->prefix % 8u;
        if (network->address_bytes == address_bytes
            && memcmp(network->address, address, whole) == 0
            && (rest == 0 || (network->address[whole] ^ address[whole]) >> (8 - rest) == 0))
            return true;
    }
    return false;
}

/* Read an address as Python's ipaddress does, without a scope; 0 when it is none. */
static size_t read_address(const uint8_t *text, size_t size, uint8_t address[16])
{
    char copy[INET6_ADDRSTRLEN];
    uint8_t raw[16];
    const uint8_t *scope = size > 0 ? memchr(text, '%', size) : NULL;
    if (scope != NULL)
        size = (size_t)(scope - text);
    if (size >= sizeof copy)
        return 0;
    memcpy(copy, text, size);
    copy[size] = '\0';
    if (inet_pton(AF_INET, copy, raw) == 1)
        return http_normal_address(raw, 4, address);
    if (inet_pton(AF_INET6, copy, raw) == 1)
        return http_normal_address(raw, 16, address);
    return 0;
}

size_t http_client_address(const struct http_proxies *proxies, const uint8_t *remote,
                           size_t remote_bytes, const char *forwarded, size_t forwarded_size,
                           uint8_t address[16])
{
    size_t bytes = http_normal_address(remote, remote_bytes, address);
    if (!http_trusts(proxies, address, bytes))
        return bytes;
    const uint8_t *text = (const uint8_t *)forwarded;
    for (size_t left = forwarded == NULL ? 0 : forwarded_size; left > 0;) {
        const uint8_t *comma = memrchr(text, ',', left);
        const uint8_t *entry = comma ? comma + 1 : text;
        size_t size = left - (size_t)(entry - text);
        left = comma ? (size_t)(comma - text) : 0;
        strip(&entry, &size);
        bytes = read_address(entry, size, address);
        if (bytes == 0)
            break;
        if (!http_trusts(proxies, address, bytes))
            return bytes;
    }
    return 0;
}
