/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "pool.h"

#include <stdlib.h>

#define MERGE (POOL_CHUNK / 2)

/* How many records there is memory for where so many are. */
static uint32_t capacity(uint32_t count)
{
    if (count <= 4)
        return count;
    return count <= 16 ? (count + 3) / 4 * 4 : (count + 7) / 8 * 8;
}

static uint32_t list_capacity(uint32_t chunks)
{
    return chunks <= 64 ? (chunks + 7) / 8 * 8 : (chunks + 63) / 64 * 64;
}

/* Have memory for so many records; a block that can't shrink stays as large as it is. */
static bool resize(uint8_t **records, uint32_t from, uint32_t to, size_t stride)
{
    if (capacity(from) == capacity(to) && *records != NULL)
        return true;
    if (to == 0) {
        free(*records);
        *records = NULL;
        return true;
    }
    uint8_t *moved = realloc(*records, capacity(to) * stride);
    if (moved != NULL)
        *records = moved;
    return moved != NULL || to < from;
}

void pool_clear(struct pool *pool)
{
    for (uint32_t chunk = 0; chunk < pool->chunks; ++chunk)
        free(pool_chunk_at(pool, chunk).records);
    free(pool->data);
    *pool = (struct pool){0};
}

/* The first place whose record doesn't begin with less than a prefix: within the last chunk that
 * begins with less, which is where such a record would be inserted. */
static struct pool_place lower_bound(const struct pool *pool, const uint8_t *prefix, size_t size,
                                     bool six)
{
    size_t stride = pool_stride(six);
    struct pool_place place = {0, 0};
    if (pool->chunks) {
        const struct pool_chunk *list = pool->data;
        uint32_t low = 0, high = pool->chunks;
        while (high - low > 1) {
            uint32_t middle = low + (high - low) / 2;
            if (memcmp(list[middle].records, prefix, size) < 0)
                low = middle;
            else
                high = middle;
        }
        place.chunk = low;
    }
    struct pool_chunk chunk = pool_chunk_at(pool, place.chunk);
    uint32_t low = 0, high = chunk.count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (memcmp(chunk.records + middle * stride, prefix, size) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    place.offset = low;
    return place;
}

/* From the end of a chunk to the beginning of the next; false where there is none. */
static bool settle(const struct pool *pool, struct pool_place *place)
{
    if (pool->count == 0)
        return false;
    if (place->offset < pool_chunk_at(pool, place->chunk).count)
        return true;
    if (place->chunk + 1 >= pool->chunks)
        return false;
    *place = (struct pool_place){place->chunk + 1, 0};
    return true;
}

bool pool_find(const struct pool *pool, const uint8_t *key, bool six, struct pool_place *place)
{
    if (pool->count == 0)
        return false;
    *place = lower_bound(pool, key, pool_key(six), six);
    return settle(pool, place) && memcmp(pool_record(pool, *place, six), key, pool_key(six)) == 0;
}

uint32_t pool_ordinal(const struct pool *pool, struct pool_place place)
{
    uint32_t before = place.offset;
    for (uint32_t chunk = 0; chunk < place.chunk; ++chunk)
        before += pool_chunk_at(pool, chunk).count;
    return before;
}

/* Make room for another chunk behind one; false without memory. */
static bool open_list(struct pool *pool, uint32_t after)
{
    struct pool_chunk *list = pool->data;
    uint32_t chunks = pool->chunks;
    if (list_capacity(chunks) != list_capacity(chunks + 1)) {
        list = realloc(list, list_capacity(chunks + 1) * sizeof *list);
        if (list == NULL)
            return false;
        pool->data = list;
    }
    memmove(list + after + 2, list + after + 1, (chunks - after - 1) * sizeof *list);
    ++pool->chunks;
    return true;
}

/* Halve a full chunk; false without memory. */
static bool split(struct pool *pool, uint32_t chunk, size_t stride)
{
    uint32_t kept = POOL_CHUNK / 2, moved = POOL_CHUNK - kept;
    uint8_t *records = malloc(capacity(moved) * stride);
    if (records == NULL)
        return false;
    if (pool->chunks == 0) {
        struct pool_chunk *list = malloc(list_capacity(2) * sizeof *list);
        if (list == NULL) {
            free(records);
            return false;
        }
        list[0] = (struct pool_chunk){pool->data, POOL_CHUNK};
        pool->data = list;
        pool->chunks = 2;
    } else if (!open_list(pool, chunk)) {
        free(records);
        return false;
    }
    struct pool_chunk *list = pool->data;
    memcpy(records, list[chunk].records + kept * stride, moved * stride);
    list[chunk + 1] = (struct pool_chunk){records, moved};
    list[chunk].count = kept;
    resize(&list[chunk].records, POOL_CHUNK, kept, stride);
    return true;
}

bool pool_insert(struct pool *pool, const uint8_t *record, bool six)
{
    size_t stride = pool_stride(six);
    struct pool_place place = lower_bound(pool, record, pool_key(six), six);
    if (pool_chunk_at(pool, place.chunk).count == POOL_CHUNK) {
        if (!split(pool, place.chunk, stride))
            return false;
        place = lower_bound(pool, record, pool_key(six), six);
    }
    struct pool_chunk chunk = pool_chunk_at(pool, place.chunk);
    if (!resize(&chunk.records, chunk.count, chunk.count + 1, stride))
        return false;
    uint8_t *at = chunk.records + place.offset * stride;
    memmove(at + stride, at, (chunk.count - place.offset) * stride);
    memcpy(at, record, stride);
    ++chunk.count;
    ++pool->count;
    if (pool->chunks)
        ((struct pool_chunk *)pool->data)[place.chunk] = chunk;
    else
        pool->data = chunk.records;
    return true;
}

/* Leave out the empty chunks of a list, join neighbours that are small together, and do without the
 * list when one chunk is left. A chunk that can't be joined for lack of memory stays. */
static void tidy(struct pool *pool, size_t stride)
{
    struct pool_chunk *list = pool->data;
    uint32_t kept = 0, before = pool->chunks;
    for (uint32_t index = 0; index < before; ++index) {
        struct pool_chunk chunk = list[index];
        if (chunk.count == 0) {
            free(chunk.records);
            continue;
        }
        if (kept) {
            struct pool_chunk *last = &list[kept - 1];
            uint32_t together = last->count + chunk.count;
            if (together <= MERGE && resize(&last->records, last->count, together, stride)) {
                memcpy(last->records + last->count * stride, chunk.records, chunk.count * stride);
                last->count = together;
                free(chunk.records);
                continue;
            }
        }
        list[kept++] = chunk;
    }
    pool->chunks = kept;
    if (kept <= 1) {
        uint8_t *records = kept ? list[0].records : NULL;
        free(list);
        pool->data = records;
        pool->chunks = 0;
    } else if (list_capacity(kept) != list_capacity(before)) {
        list = realloc(list, list_capacity(kept) * sizeof *list);
        if (list != NULL)
            pool->data = list;
    }
}

void pool_remove(struct pool *pool, struct pool_place place, bool six)
{
    size_t stride = pool_stride(six);
    struct pool_chunk chunk = pool_chunk_at(pool, place.chunk);
    uint8_t *at = chunk.records + place.offset * stride;
    memmove(at, at + stride, (chunk.count - place.offset - 1) * stride);
    resize(&chunk.records, chunk.count, chunk.count - 1, stride);
    --chunk.count;
    --pool->count;
    if (pool->chunks == 0) {
        pool->data = chunk.records;
        return;
    }
    ((struct pool_chunk *)pool->data)[place.chunk] = chunk;
    /* Rarely, as all of the list is looked at. */
    if (chunk.count == 0 || chunk.count == MERGE / 4)
        tidy(pool, stride);
}

uint32_t pool_make_room(struct pool *pool, const uint8_t *network, uint32_t allowed, bool six,
                        uint32_t *partial)
{
    size_t size = six ? 8 : 4;
    for (uint32_t dropped = 0;; ++dropped) {
        uint32_t found = 0, longest = 0;
        struct pool_place oldest = {0, 0};
        struct pool_place place = lower_bound(pool, network, size, six);
        for (; settle(pool, &place); ++place.offset) {
            const uint8_t *record = pool_record(pool, place, six);
            if (memcmp(record, network, size) != 0)
                break;
            uint32_t seen = pool_seen(record, six);
            if (found++ == 0 || seen < longest) {
                longest = seen;
                oldest = place;
            }
        }
        if (found < allowed || found == 0)
            return dropped;
        *partial += pool_flags(pool_record(pool, oldest, six), six) & POOL_PARTIAL;
        pool_remove(pool, oldest, six);
    }
}

uint32_t pool_expire(struct pool *pool, int64_t before, bool six,
                     bool (*unwanted)(const void *context, const uint8_t *address),
                     const void *context)
{
    size_t stride = pool_stride(six);
    uint32_t count = pool->count;
    for (uint32_t index = 0; index < pool_chunks(pool); ++index) {
        struct pool_chunk chunk = pool_chunk_at(pool, index);
        uint32_t kept = 0;
        for (uint32_t offset = 0; offset < chunk.count; ++offset) {
            const uint8_t *record = chunk.records + offset * stride;
            if (pool_seen(record, six) < before ||
                (unwanted != NULL && unwanted(context, record)))
                continue;
            if (kept != offset)
                memcpy(chunk.records + kept * stride, record, stride);
            ++kept;
        }
        if (kept == chunk.count)
            continue;
        pool->count -= chunk.count - kept;
        if (pool->chunks) {
            /* An empty chunk keeps its memory until the list is tidied. */
            if (kept)
                resize(&chunk.records, chunk.count, kept, stride);
            ((struct pool_chunk *)pool->data)[index] = (struct pool_chunk){chunk.records, kept};
        } else {
            resize(&chunk.records, chunk.count, kept, stride);
            pool->data = chunk.records;
            break;
        }
    }
    if (pool->chunks && pool->count != count)
        tidy(pool, stride);
    return count - pool->count;
}

uint32_t pool_partial(const struct pool *pool, bool six)
{
    uint32_t partial = 0;
    for (uint32_t index = 0; index < pool_chunks(pool); ++index) {
        struct pool_chunk chunk = pool_chunk_at(pool, index);
        for (uint32_t offset = 0; offset < chunk.count; ++offset)
            partial += pool_flags(chunk.records + offset * pool_stride(six), six) & POOL_PARTIAL;
    }
    return partial;
}
