/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Announces and scrapes over HTTP, answered in bytes; http_wire.h. BEP 3, 7, 21, 23, 24, 31, 48.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "http_wire.h"
#include "http_query.h"

#include <arpa/inet.h>
#include <string.h>
#include <time.h>

#define DAY 86400
#define DIGITS 20 /* of a number of 64 bits */

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
    struct http_complaint complaint = {.size = 0};
    bool compact = true;
    if (!http_read_announce(query, size, &request, &compact, &complaint)) {
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
    uint8_t hashes[(SWARMS_MAX_SCRAPE + 1) * SWARMS_HASH_BYTES];
    struct swarms_counts counts[SWARMS_MAX_SCRAPE];
    struct http_complaint complaint = {.size = 0};
    size_t count = http_read_scrape(query, size, hashes, &complaint);
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
