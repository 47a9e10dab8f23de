/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "hashset.h"

#include <stdlib.h>

#define SMALLEST 8

static const uint8_t zero[HASHSET_BYTES];

static bool is_zero(const uint8_t *hash)
{
    return memcmp(hash, zero, HASHSET_BYTES) == 0;
}

static struct hashset_shard *shard_of(const struct hashset *set, uint64_t hash)
{
    return (struct hashset_shard *)&set->shards[hash % HASHSET_SHARDS];
}

static uint8_t *slot_at(const struct hashset_shard *shard, uint32_t place)
{
    return shard->slots + (size_t)place * HASHSET_BYTES;
}

/* Where an infohash is, or the empty slot where it belongs; there is always an empty one. */
static uint32_t place_of(const struct hashset_shard *shard, uint64_t hash, const uint8_t *bytes)
{
    uint32_t place = (uint32_t)(hash >> 32) & (shard->capacity - 1);
    while (!is_zero(slot_at(shard, place)) &&
           memcmp(slot_at(shard, place), bytes, HASHSET_BYTES) != 0)
        place = (place + 1) & (shard->capacity - 1);
    return place;
}

struct hashset *hashset_new(const struct siphash_key *key)
{
    struct hashset *set = calloc(1, sizeof *set);
    if (set != NULL)
        set->key = *key;
    return set;
}

struct hashset *hashset_of(const struct siphash_key *key, const uint8_t *hashes, size_t count)
{
    struct hashset *set = hashset_new(key);
    for (size_t index = 0; set != NULL && index < count; ++index)
        if (!hashset_add(set, hashes + index * HASHSET_BYTES)) {
            hashset_free(set);
            return NULL;
        }
    return set;
}

void hashset_free(struct hashset *set)
{
    if (set == NULL)
        return;
    for (size_t index = 0; index < HASHSET_SHARDS; ++index)
        free(set->shards[index].slots);
    free(set);
}

bool hashset_has(const struct hashset *set, const uint8_t *hash)
{
    if (is_zero(hash))
        return set->has_zero;
    uint64_t number = siphash20(&set->key, hash);
    const struct hashset_shard *shard = shard_of(set, number);
    return shard->capacity && !is_zero(slot_at(shard, place_of(shard, number, hash)));
}

static bool grow(struct hashset *set, struct hashset_shard *shard)
{
    struct hashset_shard larger = {.capacity = shard->capacity ? shard->capacity * 2 : SMALLEST,
                                   .count = shard->count};
    if (larger.capacity == 0)
        return false;
    larger.slots = calloc(larger.capacity, HASHSET_BYTES);
    if (larger.slots == NULL)
        return false;
    for (uint32_t place = 0; place < shard->capacity; ++place) {
        const uint8_t *bytes = slot_at(shard, place);
        if (!is_zero(bytes)) {
            uint32_t to = place_of(&larger, siphash20(&set->key, bytes), bytes);
            memcpy(slot_at(&larger, to), bytes, HASHSET_BYTES);
        }
    }
    free(shard->slots);
    *shard = larger;
    return true;
}

bool hashset_add(struct hashset *set, const uint8_t *hash)
{
    if (is_zero(hash)) {
        set->count += !set->has_zero;
        set->has_zero = true;
        return true;
    }
    uint64_t number = siphash20(&set->key, hash);
    struct hashset_shard *shard = shard_of(set, number);
    if (shard->capacity && !is_zero(slot_at(shard, place_of(shard, number, hash))))
        return true;
    if ((uint64_t)shard->count * 4 >= (uint64_t)shard->capacity * 3 && !grow(set, shard))
        return false;
    memcpy(slot_at(shard, place_of(shard, number, hash)), hash, HASHSET_BYTES);
    ++shard->count;
    ++set->count;
    return true;
}

void hashset_remove(struct hashset *set, const uint8_t *hash)
{
    if (is_zero(hash)) {
        set->count -= set->has_zero;
        set->has_zero = false;
        return;
    }
    uint64_t number = siphash20(&set->key, hash);
    struct hashset_shard *shard = shard_of(set, number);
    if (!shard->capacity)
        return;
    uint32_t hole = place_of(shard, number, hash), mask = shard->capacity - 1;
    if (is_zero(slot_at(shard, hole)))
        return;
    /* Those behind that would not be found across the hole move into it. */
    for (uint32_t place = (hole + 1) & mask; !is_zero(slot_at(shard, place));
         place = (place + 1) & mask) {
        uint32_t home = (uint32_t)(siphash20(&set->key, slot_at(shard, place)) >> 32) & mask;
        if (((place - home) & mask) >= ((place - hole) & mask)) {
            memcpy(slot_at(shard, hole), slot_at(shard, place), HASHSET_BYTES);
            hole = place;
        }
    }
    memset(slot_at(shard, hole), 0, HASHSET_BYTES);
    --shard->count;
    --set->count;
}

void hashset_each(const struct hashset *set, void (*each)(void *context, const uint8_t *hash),
                  void *context)
{
    if (set->has_zero)
        each(context, zero);
    for (size_t index = 0; index < HASHSET_SHARDS; ++index) {
        const struct hashset_shard *shard = &set->shards[index];
        for (uint32_t place = 0; place < shard->capacity; ++place)
            if (!is_zero(slot_at(shard, place)))
                each(context, slot_at(shard, place));
    }
}
