/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Announces and scrapes over HTTP as bytes; http_wire.h. BEP 3, 7, 21, 23, 24, 31 and 48.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "http_wire.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define DAY 86400
#define DIGITS 20 /* of a number of 64 bits */

/* -- queries ---------------------------------------------------------------------------------- */

struct value {
    const uint8_t *text;
    size_t size;
    bool there;
};

static int hex(uint8_t byte)
{
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    byte |= 0x20;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* Undo percent escapes; what isn't one stays. Writes at most `room` bytes, and returns how many
 * there would be. */
static size_t unescape(const uint8_t *text, size_t size, uint8_t *out, size_t room)
{
    size_t written = 0;
    for (size_t at = 0; at < size; ++at, ++written) {
        uint8_t byte = text[at];
        if (byte == '%' && size - at > 2) {
            int high = hex(text[at + 1]), low = hex(text[at + 2]);
            if (high >= 0 && low >= 0) {
                byte = (uint8_t)(high << 4 | low);
                at += 2;
            }
        }
        if (written < room)
            out[written] = byte;
    }
    return written;
}

/* The next `name=value` of a query; false at its end. The name is unescaped and cut to `room`. */
static bool next_pair(const uint8_t **query, const uint8_t *end, uint8_t *name, size_t room,
                      size_t *name_size, struct value *value)
{
    if (*query > end)
        return false;
    const uint8_t *field = *query;
    const uint8_t *stop = memchr(field, '&', (size_t)(end - field));
    if (stop == NULL)
        stop = end;
    *query = stop + 1;
    const uint8_t *equals = memchr(field, '=', (size_t)(stop - field));
    const uint8_t *name_end = equals ? equals : stop;
    *name_size = unescape(field, (size_t)(name_end - field), name, room);
    value->text = equals ? equals + 1 : stop;
    value->size = (size_t)(stop - value->text);
    value->there = true;
    return true;
}

enum parameter { INFO_HASH, PEER_ID, PORT, LEFT, EVENT, NUMWANT, COMPACT, NO_PEER_ID, PARAMETERS };
static const char *const names[PARAMETERS] = {
    "info_hash", "peer_id", "port", "left", "event", "numwant", "compact", "no_peer_id",
};
#define LONGEST_NAME 10

/* What is wrong with a query: a failure reason. */
struct complaint {
    char text[80];
    int size; /* 0: nothing */
};

__attribute__((format(printf, 2, 3)))
static bool complain(struct complaint *complaint, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    complaint->size = vsnprintf(complaint->text, sizeof complaint->text, format, arguments);
    va_end(arguments);
    return false;
}

/* Read a decimal number of 64 bits, as its magnitude and sign. */
static bool read_number(const char *name, const struct value *value, bool *negative,
                        uint64_t *number, struct complaint *complaint)
{
    const uint8_t *text = value->text;
    size_t size = value->size;
    bool valid = true;
    *negative = size > 0 && *text == '-';
    *number = 0;
    text += *negative, size -= *negative;
    if (size == 0 || size > DIGITS)
        valid = false;
    for (size_t at = 0; valid && at < size; ++at)
        valid = text[at] >= '0' && text[at] <= '9'
             && !__builtin_mul_overflow(*number, 10u, number)
             && !__builtin_add_overflow(*number, (uint64_t)(text[at] - '0'), number);
    if (*number == 0)
        *negative = false;
    return valid || complain(complaint, "%s: is not a number of 64 bits", name);
}

/* A number that may be absent, -1 for that and for negative ones; what is too large is cut. */
static bool read_optional(enum parameter parameter, const struct value *value, int64_t *number,
                          struct complaint *complaint)
{
    bool negative;
    uint64_t magnitude;
    *number = -1;
    if (!value->there)
        return true;
    if (!read_number(names[parameter], value, &negative, &magnitude, complaint))
        return false;
    if (!negative)
        *number = magnitude > INT64_MAX ? INT64_MAX : (int64_t)magnitude;
    return true;
}

static bool read_hash(const struct value *value, uint8_t out[SWARMS_HASH_BYTES],
                      struct complaint *complaint)
{
    size_t size = unescape(value->text, value->size, out, SWARMS_HASH_BYTES);
    return size == SWARMS_HASH_BYTES
        || complain(complaint, "info_hash: has %zu bytes instead of 20", size);
}

static bool says(const struct value *value, char wanted)
{
    return value->there && value->size == 1 && *value->text == (uint8_t)wanted;
}

static uint8_t read_event(const struct value *value)
{
    static const struct { const char *name; uint8_t event; } events[] = {
        {"started", SWARMS_STARTED}, {"completed", SWARMS_COMPLETED},
        {"stopped", SWARMS_STOPPED}, {"paused", SWARMS_PAUSED},
    };
    uint8_t text[10];
    size_t size = value->there ? unescape(value->text, value->size, text, sizeof text) : 0;
    for (size_t index = 0; index < sizeof events / sizeof *events; ++index)
        if (size == strlen(events[index].name) && memcmp(text, events[index].name, size) == 0)
            return events[index].event;
    return SWARMS_NONE;
}

/* Read the query of an announce, apart from the address; see `parse_announce`. */
static bool read_announce(const uint8_t *query, size_t size, struct swarms_request *request,
                          bool *compact, struct complaint *complaint)
{
    struct value values[PARAMETERS] = {{0}}, value;
    uint8_t name[LONGEST_NAME];
    size_t name_size;
    const uint8_t *end = query + size;
    while (next_pair(&query, end, name, sizeof name, &name_size, &value)) {
        for (int index = 0; index < PARAMETERS; ++index) {
            if (name_size != strlen(names[index]) || memcmp(name, names[index], name_size) != 0)
                continue;
            if (!values[index].there)
                values[index] = value;
            else if (index == INFO_HASH)
                return complain(complaint, "info_hash: only one may be announced at a time");
            break;
        }
    }
    if (!values[INFO_HASH].there)
        return complain(complaint, "info_hash: is missing");
    if (!read_hash(&values[INFO_HASH], request->info_hash, complaint))
        return false;
    if (!values[PEER_ID].there)
        return complain(complaint, "peer_id: is missing");
    size = unescape(values[PEER_ID].text, values[PEER_ID].size, request->peer_id,
                    SWARMS_HASH_BYTES);
    if (size != SWARMS_HASH_BYTES)
        return complain(complaint, "peer_id: has %zu bytes instead of 20", size);
    request->event = read_event(&values[EVENT]);
    if (!values[PORT].there)
        return complain(complaint, "port: is missing");
    bool negative;
    uint64_t port;
    if (!read_number("port", &values[PORT], &negative, &port, complaint))
        return false;
    /* Clients that stop may send port 0; nobody will be told to connect to it. */
    if (negative || port > UINT16_MAX || (port == 0 && request->event != SWARMS_STOPPED))
        return complain(complaint, "port: is not between 1 and 65535");
    request->port = (uint16_t)port;
    *compact = !says(&values[COMPACT], '0');
    request->want_ids = !*compact && !says(&values[NO_PEER_ID], '1');
    request->one_family = false;
    return read_optional(LEFT, &values[LEFT], &request->left, complaint)
        && read_optional(NUMWANT, &values[NUMWANT], &request->numwant, complaint);
}

/* Read the infohashes of a scrape, each once; see `parse_scrape`. Returns how many, or 0. */
static size_t read_scrape(const uint8_t *query, size_t size, uint8_t *hashes,
                          struct complaint *complaint)
{
    struct value value;
    uint8_t name[LONGEST_NAME];
    size_t name_size, count = 0;
    const uint8_t *end = query + size;
    while (count < SWARMS_MAX_SCRAPE
           && next_pair(&query, end, name, sizeof name, &name_size, &value)) {
        if (name_size != strlen(names[INFO_HASH]) || memcmp(name, names[INFO_HASH], name_size) != 0)
            continue;
        uint8_t *fresh = hashes + count * SWARMS_HASH_BYTES;
        if (!read_hash(&value, fresh, complaint))
            return 0;
        size_t place = 0;
        while (memcmp(hashes + place * SWARMS_HASH_BYTES, fresh, SWARMS_HASH_BYTES) != 0)
            ++place;
        count += place == count;
    }
    if (count == 0)
        complain(complaint, "info_hash: is missing, and full scrapes are not served");
    return count;
}

/* -- replies ---------------------------------------------------------------------------------- */

static uint8_t *put(uint8_t *at, const void *bytes, size_t size)
{
    memcpy(at, bytes, size);
    return at + size;
}

#define PUT(at, literal) put((at), "" literal, sizeof(literal) - 1)

static uint8_t *put_number(uint8_t *at, uint64_t number)
{
    uint8_t digits[DIGITS], *first = digits + sizeof digits;
    do
        *--first = (uint8_t)('0' + number % 10);
    while ((number /= 10) > 0);
    return put(at, first, (size_t)(digits + sizeof digits - first));
}

static uint8_t *put_string(uint8_t *at, const void *bytes, size_t size)
{
    at = put_number(at, size);
    *at++ = ':';
    return put(at, bytes, size);
}

/* Peers as the dictionaries of BEP 3. */
static uint8_t *put_entries(uint8_t *at, const uint8_t *peers, const uint8_t *ids, size_t count,
                            int family, size_t address_bytes)
{
    for (size_t index = 0; index < count; ++index, peers += address_bytes + 2) {
        char host[INET6_ADDRSTRLEN];
        inet_ntop(family, peers, host, sizeof host);
        at = PUT(at, "d2:ip");
        at = put_string(at, host, strlen(host));
        if (ids != NULL) {
            at = PUT(at, "7:peer id20:");
            at = put(at, ids + index * SWARMS_HASH_BYTES, SWARMS_HASH_BYTES);
        }
        at = PUT(at, "4:porti");
        at = put_number(at, (uint64_t)peers[address_bytes] << 8 | peers[address_bytes + 1]);
        at = PUT(at, "ee");
    }
    return at;
}

static uint8_t *put_announce(uint8_t *at, const struct swarms_request *request,
                             const struct swarms_answer *answer, bool compact)
{
    at = PUT(at, "d8:completei");
    at = put_number(at, answer->counts.complete);
    at = PUT(at, "e10:downloadedi");
    at = put_number(at, answer->counts.downloaded);
    at = PUT(at, "e11:external ip");
    at = put_string(at, request->address, request->address_bytes);
    at = PUT(at, "10:incompletei");
    at = put_number(at, answer->counts.incomplete);
    at = PUT(at, "e8:intervali");
    at = put_number(at, answer->interval);
    at = PUT(at, "e12:min intervali");
    at = put_number(at, answer->min_interval);
    at = PUT(at, "e5:peers");
    if (!compact) {
        *at++ = 'l';
        at = put_entries(at, answer->peers4, answer->ids4, answer->count4, AF_INET, 4);
        at = put_entries(at, answer->peers6, answer->ids6, answer->count6, AF_INET6, 16);
        return PUT(at, "ee");
    }
    at = put_string(at, answer->peers4, (size_t)answer->count4 * SWARMS_PEER4_BYTES);
    if (answer->count6 > 0 || request->address_bytes == 16) {
        at = PUT(at, "6:peers6");
        at = put_string(at, answer->peers6, (size_t)answer->count6 * SWARMS_PEER6_BYTES);
    }
    return PUT(at, "e");
}

/* How long to stay away, with a failure: not said, never, or minutes. */
#define UNSAID (-2)
#define NEVER (-1)

static uint8_t *put_failure(uint8_t *at, const char *reason, size_t size, int64_t retry_minutes)
{
    at = PUT(at, "d14:failure reason");
    at = put_string(at, reason, size);
    if (retry_minutes == NEVER) {
        at = PUT(at, "8:intervali");
        at = put_number(at, DAY);
        at = PUT(at, "e8:retry in5:never");
    } else if (retry_minutes != UNSAID) {
        at = PUT(at, "8:intervali");
        at = put_number(at, (uint64_t)retry_minutes * 60);
        at = PUT(at, "e8:retry ini");
        at = put_number(at, (uint64_t)retry_minutes);
        at = PUT(at, "e");
    }
    return PUT(at, "e");
}

static uint8_t *put_refusal(uint8_t *at, struct swarms *swarms, enum swarms_status status,
                            enum swarms_outcome *outcome)
{
    *outcome = swarms_outcome_of(status);
    const char *reason = swarms_reasons[status];
    int64_t retry = NEVER;
    if (status == SWARMS_UNLISTED)
        retry = swarms_get_policy(swarms).retry_minutes;
    return put_failure(at, reason, strlen(reason), retry);
}

static uint8_t *put_scrape(uint8_t *at, const uint8_t *hashes, const struct swarms_counts *counts,
                           size_t count, uint32_t min_interval)
{
    uint8_t order[SWARMS_MAX_SCRAPE];
    for (size_t index = 0; index < count; ++index) {
        size_t place = index;
        for (; place > 0 && memcmp(hashes + order[place - 1] * SWARMS_HASH_BYTES,
                                   hashes + index * SWARMS_HASH_BYTES, SWARMS_HASH_BYTES) > 0;
             --place)
            order[place] = order[place - 1];
        order[place] = (uint8_t)index;
    }
    at = PUT(at, "d5:filesd");
    for (size_t index = 0; index < count; ++index) {
        const struct swarms_counts *each = &counts[order[index]];
        at = put_string(at, hashes + order[index] * SWARMS_HASH_BYTES, SWARMS_HASH_BYTES);
        at = PUT(at, "d8:completei");
        at = put_number(at, each->complete);
        at = PUT(at, "e10:downloadedi");
        at = put_number(at, each->downloaded);
        at = PUT(at, "e11:downloadersi");
        at = put_number(at, each->downloaders);
        at = PUT(at, "e10:incompletei");
        at = put_number(at, each->incomplete);
        at = PUT(at, "ee");
    }
    at = PUT(at, "e5:flagsd20:min_request_intervali");
    at = put_number(at, min_interval);
    return PUT(at, "eee");
}

static uint8_t *answer_announce(struct swarms *swarms, struct http_scratch *scratch,
                                const uint8_t *query, size_t size, const uint8_t *address,
                                size_t address_bytes, int64_t now, uint8_t *body,
                                enum swarms_outcome *outcome)
{
    struct swarms_request request = {.address_bytes = (uint8_t)address_bytes};
    struct complaint complaint = {.size = 0};
    bool compact = true;
    if (!read_announce(query, size, &request, &compact, &complaint)) {
        if (swarms_refuses(swarms, address, address_bytes))
            return put_refusal(body, swarms, SWARMS_REFUSED, outcome);
        *outcome = SWARMS_COUNT_MALFORMED;
        return put_failure(body, complaint.text, (size_t)complaint.size, UNSAID);
    }
    memcpy(request.address, address, address_bytes);
    struct swarms_answer answer = {
        .room = SWARMS_MAX_WANTED,
        .peers4 = scratch->peers4,
        .peers6 = scratch->peers6,
        .ids4 = request.want_ids ? scratch->ids4 : NULL,
        .ids6 = request.want_ids ? scratch->ids6 : NULL,
    };
    enum swarms_status status = swarms_announce(swarms, &request, now, &answer);
    if (status != SWARMS_OK)
        return put_refusal(body, swarms, status, outcome);
    *outcome = SWARMS_COUNT_OK;
    return put_announce(body, &request, &answer, compact);
}

static uint8_t *answer_scrape(struct swarms *swarms, const uint8_t *query, size_t size,
                              const uint8_t *address, size_t address_bytes, uint8_t *body,
                              enum swarms_outcome *outcome)
{
    /* Whatever else the request says. */
    if (swarms_refuses(swarms, address, address_bytes))
        return put_refusal(body, swarms, SWARMS_REFUSED, outcome);
    /* One more: where the next infohash is read to before it is known to be another one. */
    uint8_t hashes[(SWARMS_MAX_SCRAPE + 1) * SWARMS_HASH_BYTES];
    struct swarms_counts counts[SWARMS_MAX_SCRAPE];
    struct complaint complaint = {.size = 0};
    size_t count = read_scrape(query, size, hashes, &complaint);
    if (count == 0) {
        *outcome = SWARMS_COUNT_MALFORMED;
        return put_failure(body, complaint.text, (size_t)complaint.size, UNSAID);
    }
    swarms_scrape(swarms, hashes, count, counts);
    *outcome = SWARMS_COUNT_OK;
    return put_scrape(body, hashes, counts, count, swarms_get_policy(swarms).leecher_interval);
}

size_t http_answer(struct swarms *swarms, struct http_scratch *scratch, bool scrape,
                   const uint8_t *query, size_t query_size, const uint8_t *address,
                   size_t address_bytes, int64_t now, uint8_t *body)
{
    static const char nameless[] = "X-Forwarded-For: the proxy did not name the client";
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    enum swarms_outcome outcome;
    enum swarms_action action = scrape ? SWARMS_SCRAPE : SWARMS_ANNOUNCE;
    enum swarms_family family = address_bytes == 0   ? SWARMS_UNKNOWN
                              : address_bytes == 4 ? SWARMS_IPV4
                                                   : SWARMS_IPV6;
    uint8_t *end;
    if (address_bytes == 0) {
        outcome = SWARMS_COUNT_MALFORMED;
        end = put_failure(body, nameless, sizeof nameless - 1, UNSAID);
    } else if (scrape) {
        end = answer_scrape(swarms, query, query_size, address, address_bytes, body, &outcome);
    } else {
        end = answer_announce(swarms, scratch, query, query_size, address, address_bytes, now,
                              body, &outcome);
    }
    swarms_count(swarms, SWARMS_HTTP, family, action, outcome, 1);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    swarms_observe(swarms, SWARMS_HTTP, action,
                   (double)(ended.tv_sec - began.tv_sec)
                       + (double)(ended.tv_nsec - began.tv_nsec) / 1e9,
                   1);
    return (size_t)(end - body);
}
