/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The peers of one swarm that have the same address family and role: packed records, sorted by
 * address and port.
 *
 * Few records stand in one block of memory that is hardly larger than they are. More than
 * POOL_CHUNK stand in a list of such blocks, so that to insert or remove one moves a few kilobytes
 * however many there are. Sorting puts the ports of one address side by side, which is how their
 * number is bounded. Nothing here locks.
 */
#ifndef NARSWARM_POOL_H
#define NARSWARM_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define POOL_CHUNK 128
#define POOL_TAIL 25 /* behind address and port: 4 bytes of time, 1 of flags, 20 of peer id */
#define POOL_MAX_STRIDE (18 + POOL_TAIL)

/* What is remembered of a peer. */
#define POOL_PARTIAL 1 /* a partial seed */
#define POOL_COUNTED 2 /* its download was counted */

struct pool_chunk {
    uint8_t *records;
    uint32_t count;
};

struct pool {
    void *data;      /* records, or struct pool_chunk when there are `chunks` */
    uint32_t count;  /* records in all */
    uint32_t chunks; /* 0, or more than one */
};

/* Where a record is; it holds until the next change. */
struct pool_place {
    uint32_t chunk, offset;
};

/* Bytes of address and port, and of a whole record, of a family. */
static inline size_t pool_key(bool six)
{
    return six ? 18 : 6;
}

static inline size_t pool_stride(bool six)
{
    return pool_key(six) + POOL_TAIL;
}

static inline uint32_t pool_seen(const uint8_t *record, bool six)
{
    uint32_t seen;
    memcpy(&seen, record + pool_key(six), sizeof seen);
    return seen;
}

static inline uint8_t pool_flags(const uint8_t *record, bool six)
{
    return record[pool_key(six) + 4];
}

static inline const uint8_t *pool_id(const uint8_t *record, bool six)
{
    return record + pool_key(six) + 5;
}

/* The records of a chunk; there is one even when there is no list. */
static inline struct pool_chunk pool_chunk_at(const struct pool *pool, uint32_t chunk)
{
    if (pool->chunks)
        return ((const struct pool_chunk *)pool->data)[chunk];
    return (struct pool_chunk){pool->data, pool->count};
}

static inline uint32_t pool_chunks(const struct pool *pool)
{
    return pool->chunks ? pool->chunks : pool->count > 0;
}

static inline uint8_t *pool_record(const struct pool *pool, struct pool_place place, bool six)
{
    return pool_chunk_at(pool, place.chunk).records + place.offset * pool_stride(six);
}

void pool_clear(struct pool *pool);

/* Whether there is a record with an address and port, and where. */
bool pool_find(const struct pool *pool, const uint8_t *key, bool six, struct pool_place *place);

/* How many records stand before a place. */
uint32_t pool_ordinal(const struct pool *pool, struct pool_place place);

/* Insert a record that isn't there; false without memory. */
bool pool_insert(struct pool *pool, const uint8_t *record, bool six);

void pool_remove(struct pool *pool, struct pool_place place, bool six);

/* Drop the longest unheard records that begin with a network (4 bytes of IPv4, 8 of IPv6) until it
 * has fewer than `allowed`; returns how many, and adds how many of them were partial. */
uint32_t pool_make_room(struct pool *pool, const uint8_t *network, uint32_t allowed, bool six,
                        uint32_t *partial);

/* Drop the records last heard of before a time, and those that `unwanted` (NULL for none) is true
 * for; returns how many. */
uint32_t pool_expire(struct pool *pool, int64_t before, bool six,
                     bool (*unwanted)(const void *context, const uint8_t *address),
                     const void *context);

uint32_t pool_partial(const struct pool *pool, bool six);

#endif
