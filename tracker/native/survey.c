/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What looks at many swarms: scrapes, samples for the index, silent peers, downloads to be kept.
 */
#include <stdlib.h>

#include "swarms_private.h"

/* How many peers of a swarm cost as much as a swarm, when a sweep's budget is spent. */
#define PEERS_A_STEP 16

void swarms_scrape_locked(struct swarms *swarms, const uint8_t *info_hashes, size_t count,
                          struct swarms_counts *counts)
{
    for (size_t index = 0; index < count; ++index) {
        const uint8_t *info_hash = info_hashes + index * SWARMS_HASH_BYTES;
        struct swarm *swarm =
            hashset_has(swarms->blocked, info_hash) ? NULL : table_find(swarms, info_hash);
        counts[index] = swarm == NULL ? (struct swarms_counts){0} : counts_of(swarm);
    }
}

void swarms_scrape(struct swarms *swarms, const uint8_t *info_hashes, size_t count,
                   struct swarms_counts *counts)
{
    swarms_lock(swarms);
    swarms_scrape_locked(swarms, info_hashes, count, counts);
    swarms_unlock(swarms);
}

struct swarms_totals swarms_get_totals_locked(struct swarms *swarms)
{
    struct swarms_totals totals = {.swarms = swarms->count};
    memcpy(totals.peers, swarms->peers, sizeof totals.peers);
    return totals;
}

/* -- samples ----------------------------------------------------------------------------------- */

/* Addresses with ports, sorted, each once. */
struct keys {
    uint8_t *bytes;
    size_t count;
};

/* The two lists in one, without what is in both twice; `left` is taken. False without memory. */
static bool unite(struct keys *left, const struct keys *right, size_t key)
{
    if (right->count == 0)
        return true;
    struct keys both = {malloc((left->count + right->count) * key), 0};
    if (both.bytes == NULL)
        return false;
    size_t a = 0, b = 0;
    while (a < left->count || b < right->count) {
        int order = a == left->count    ? 1
                    : b == right->count ? -1
                                        : memcmp(left->bytes + a * key, right->bytes + b * key, key);
        memcpy(both.bytes + both.count++ * key,
               order <= 0 ? left->bytes + a * key : right->bytes + b * key, key);
        a += order <= 0;
        b += order >= 0;
    }
    free(left->bytes);
    *left = both;
    return true;
}

static void subtract(struct keys *from, const struct keys *other, size_t key)
{
    size_t kept = 0, b = 0;
    for (size_t a = 0; a < from->count; ++a) {
        int order = -1;
        while (b < other->count &&
               (order = memcmp(from->bytes + a * key, other->bytes + b * key, key)) > 0)
            ++b;
        if (b < other->count && order == 0)
            continue;
        if (kept != a)
            memcpy(from->bytes + kept * key, from->bytes + a * key, key);
        ++kept;
    }
    from->count = kept;
}

/* Copy the addresses with ports of a pool; false without memory. */
static bool copy_keys(const struct pool *pool, bool six, struct keys *keys)
{
    size_t key = pool_key(six);
    *keys = (struct keys){0};
    if (pool->count == 0)
        return true;
    keys->bytes = malloc(pool->count * key);
    if (keys->bytes == NULL)
        return false;
    for (uint32_t index = 0; index < pool->chunks || index == 0; ++index) {
        struct pool_chunk chunk = pool_chunk_at(pool, index);
        for (uint32_t offset = 0; offset < chunk.count; ++offset)
            memcpy(keys->bytes + keys->count++ * key, chunk.records + offset * pool_stride(six),
                   key);
    }
    return true;
}

/* Copy `wanted` of the keys behind `to`, each with the same chance. */
static uint8_t *draw(const struct keys *keys, size_t key, size_t *of, size_t *wanted,
                     uint64_t *state, uint8_t *to, uint32_t *part)
{
    for (size_t index = 0; index < keys->count; ++index, --*of) {
        /* SplitMix64 */
        uint64_t word = *state += 0x9e3779b97f4a7c15u;
        word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
        word = (word ^ word >> 27) * 0x94d049bb133111ebu;
        word ^= word >> 31;
        if ((word >> 32) * *of >> 32 >= *wanted)
            continue;
        memcpy(to, keys->bytes + index * key, key);
        to += key;
        --*wanted;
        ++*part;
    }
    return to;
}

bool swarms_sample(struct swarms *swarms, const uint8_t *info_hashes, size_t count, size_t limit,
                   struct swarms_counts *counts, uint8_t **packed, uint32_t parts[4])
{
    struct keys all[4] = {0};
    uint32_t downloaded = 0, partial = 0;
    uint64_t chance = 0;
    bool well = true;
    *packed = NULL;
    for (size_t index = 0; well && index < count; ++index) {
        struct keys found[4] = {0};
        swarms_lock(swarms);
        chance = random_word(swarms);
        const struct swarm *swarm = table_find(swarms, info_hashes + index * SWARMS_HASH_BYTES);
        if (swarm != NULL) {
            downloaded = swarm->downloaded > downloaded ? swarm->downloaded : downloaded;
            partial = swarm->partial > partial ? swarm->partial : partial;
            for (int place = 0; well && place < 4; ++place)
                well = copy_keys(&swarm->pools[place], place % 2, &found[place]);
        }
        swarms_unlock(swarms);
        for (int place = 0; place < 4; ++place) {
            well = well && unite(&all[place], &found[place], pool_key(place % 2));
            free(found[place].bytes);
        }
    }
    size_t sizes[2] = {0};
    for (int place = 0; well && place < 4; ++place) {
        if (place >= 2 && all[place].count && all[place - 2].count)
            subtract(&all[place], &all[place - 2], pool_key(place % 2));
        sizes[place / 2] += all[place].count;
    }
    if (limit > sizes[0] + sizes[1])
        limit = sizes[0] + sizes[1];
    uint8_t *to = NULL;
    if (well && limit) {
        to = *packed = malloc(limit * 18);
        well = to != NULL;
    }
    memset(parts, 0, 4 * sizeof *parts);
    for (int role = 0; well && limit && role < 2; ++role) {
        size_t wanted = limit < sizes[role] ? limit : sizes[role], of = sizes[role];
        limit -= wanted;
        for (int place = 2 * role; place < 2 * role + 2; ++place)
            to = draw(&all[place], pool_key(place % 2), &of, &wanted, &chance, to, &parts[place]);
    }
    for (int place = 0; place < 4; ++place)
        free(all[place].bytes);
    *counts = (struct swarms_counts){(uint32_t)sizes[0], (uint32_t)sizes[1], downloaded,
                                     sizes[1] > partial ? (uint32_t)sizes[1] - partial : 0};
    return well;
}

/* -- silent peers ------------------------------------------------------------------------------ */

static bool is_unwanted4(const void *networks, const uint8_t *address)
{
    return is_blocked_address(networks, address, 4);
}

static bool is_unwanted6(const void *networks, const uint8_t *address)
{
    return is_blocked_address(networks, address, 16);
}

static uint64_t expire_swarm(struct swarms *swarms, struct swarm *swarm, int64_t now)
{
    uint64_t expired = 0;
    for (int place = 0; place < 4; ++place) {
        struct pool *pool = &swarm->pools[place];
        if (pool->count == 0)
            continue;
        bool six = place % 2;
        uint32_t timeout =
            place < 2 ? swarms->limits.seed_timeout : swarms->limits.leecher_timeout;
        bool (*unwanted)(const void *, const uint8_t *) = six ? is_unwanted6 : is_unwanted4;
        uint32_t gone = pool_expire(pool, now - timeout, six,
                                    swarms->networks.count ? unwanted : NULL, &swarms->networks);
        swarms->peers[place] -= gone;
        expired += gone;
    }
    if (expired)
        swarm->partial = pool_partial(&swarm->pools[2], false) + pool_partial(&swarm->pools[3], true);
    return expired;
}

bool swarms_expire(struct swarms *swarms, int64_t now, size_t budget, uint64_t *expired)
{
    size_t spent = 0;
    swarms_lock(swarms);
    /* Buckets that come meanwhile are at the end, with swarms of those that were looked at. */
    for (; spent < budget && swarms->sweep < swarms->buckets; ++swarms->sweep, ++spent) {
        struct swarm *swarm = *table_bucket(swarms, swarms->sweep);
        while (swarm != NULL) {
            struct swarm *next = swarm->next;
            spent += 1 + (swarm->pools[0].count + swarm->pools[1].count + swarm->pools[2].count +
                          swarm->pools[3].count) /
                             PEERS_A_STEP;
            uint64_t gone = expire_swarm(swarms, swarm, now);
            *expired += gone;
            if (gone)
                table_forget(swarms, swarm);
            swarm = next;
        }
    }
    bool finished = swarms->sweep >= swarms->buckets;
    if (finished)
        swarms->sweep = 0;
    swarms_unlock(swarms);
    return finished;
}

/* -- downloads --------------------------------------------------------------------------------- */

void swarms_restore(struct swarms *swarms, const uint8_t *info_hash, uint32_t downloaded)
{
    swarms_lock(swarms);
    if (swarms->keep_downloads && downloaded && swarms->count < swarms->limits.swarms) {
        struct swarm *swarm = table_find(swarms, info_hash);
        if (swarm == NULL)
            swarm = table_insert(swarms, info_hash);
        if (swarm != NULL)
            swarm->downloaded = downloaded;
    }
    swarms_unlock(swarms);
}

struct handing_out {
    struct swarms *swarms;
    void (*take)(void *context, const uint8_t *info_hash, uint32_t downloaded);
    void *context;
};

static void hand_out(void *context, const uint8_t *info_hash)
{
    struct handing_out *handing = context;
    const struct swarm *swarm = table_find(handing->swarms, info_hash);
    handing->take(handing->context, info_hash, swarm == NULL ? 0 : swarm->downloaded);
}

void swarms_take_downloads(struct swarms *swarms,
                           void (*take)(void *context, const uint8_t *info_hash,
                                        uint32_t downloaded),
                           void *context)
{
    struct hashset *fresh = hashset_new(&swarms->key);
    if (fresh == NULL)
        return; /* they wait */
    swarms_lock(swarms);
    struct handing_out handing = {swarms, take, context};
    struct hashset *changed = swarms->changed;
    hashset_each(changed, hand_out, &handing);
    swarms->changed = fresh;
    swarms_unlock(swarms);
    hashset_free(changed);
}

void swarms_give_back(struct swarms *swarms, const uint8_t *info_hashes, size_t count)
{
    swarms_lock(swarms);
    for (size_t index = 0; swarms->keep_downloads && index < count; ++index)
        (void)hashset_add(swarms->changed, info_hashes + index * SWARMS_HASH_BYTES);
    swarms_unlock(swarms);
}
