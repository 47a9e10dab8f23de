/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the queries of announces and scrapes say; http_query.h. BEP 3, 7, 21, 23 and 48.
 */
#include "http_query.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define DIGITS 20 /* of a number of 64 bits */

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

__attribute__((format(printf, 2, 3)))
static bool complain(struct http_complaint *complaint, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    complaint->size = vsnprintf(complaint->text, sizeof complaint->text, format, arguments);
    va_end(arguments);
    return false;
}

/* Read a decimal number of 64 bits, as its magnitude and sign. */
static bool read_number(const char *name, const struct value *value, bool *negative,
                        uint64_t *number, struct http_complaint *complaint)
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
                          struct http_complaint *complaint)
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
                      struct http_complaint *complaint)
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

bool http_read_announce(const uint8_t *query, size_t size, struct swarms_request *request,
                        bool *compact, struct http_complaint *complaint)
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

size_t http_read_scrape(const uint8_t *query, size_t size, uint8_t *hashes,
                        struct http_complaint *complaint)
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
