/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The table of swarms, and announces against it. What else the mutex guards is in decisions.c, and
 * what looks at many swarms in survey.c.
 */
#include "swarms_private.h"

#include <stdlib.h>

#define FIRST_BUCKETS SEGMENT

/* -- chance: xoshiro256**, which chooses peers and keeps no secret ----------------------------- */

uint64_t random_word(struct swarms *swarms)
{
    uint64_t *s = swarms->random;
    uint64_t result = siphash_rotate(s[1] * 5, 7) * 9, shifted = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= shifted;
    s[3] = siphash_rotate(s[3], 45);
    return result;
}

uint32_t random_below(struct swarms *swarms, uint32_t limit)
{
    return (uint32_t)((random_word(swarms) >> 32) * limit >> 32);
}

/* -- the table: linear hashing, which grows by one bucket with each swarm ---------------------- */

struct swarm **table_bucket(struct swarms *swarms, uint32_t place)
{
    return &swarms->segments[place / SEGMENT][place % SEGMENT];
}

/* The bucket of a hash: those from `low` on are the halves of those below `buckets - low`. */
static uint32_t place_of(const struct swarms *swarms, uint32_t hash)
{
    uint32_t place = hash & (swarms->low * 2 - 1);
    return place < swarms->buckets ? place : hash & (swarms->low - 1);
}

static uint32_t hash_of(const struct swarms *swarms, const uint8_t *info_hash)
{
    return (uint32_t)siphash20(&swarms->key, info_hash);
}

struct swarm *table_find(struct swarms *swarms, const uint8_t *info_hash)
{
    uint32_t hash = hash_of(swarms, info_hash);
    struct swarm *swarm = *table_bucket(swarms, place_of(swarms, hash));
    while (swarm != NULL && (swarm->hash != hash ||
                             memcmp(swarm->info_hash, info_hash, SWARMS_HASH_BYTES) != 0))
        swarm = swarm->next;
    return swarm;
}

bool table_open(struct swarms *swarms)
{
    swarms->segments = malloc(sizeof *swarms->segments);
    if (swarms->segments == NULL)
        return false;
    swarms->segments[0] = calloc(SEGMENT, sizeof **swarms->segments);
    swarms->buckets = swarms->low = FIRST_BUCKETS;
    return swarms->segments[0] != NULL;
}

/* Add a bucket, and give it what belongs there of the one that it halves. Without memory the table
 * stays as it is, only slower. */
static void table_grow(struct swarms *swarms)
{
    uint32_t place = swarms->buckets;
    if (place == MAX_BUCKETS)
        return;
    if (place % SEGMENT == 0) {
        uint32_t segments = place / SEGMENT;
        /* Doubled, so that it is seldom copied; it has a pointer for 1024 swarms. */
        if ((segments & (segments - 1)) == 0) {
            struct swarm ***moved =
                realloc(swarms->segments, (size_t)segments * 2 * sizeof *moved);
            if (moved == NULL)
                return;
            swarms->segments = moved;
        }
        swarms->segments[segments] = calloc(SEGMENT, sizeof **swarms->segments);
        if (swarms->segments[segments] == NULL)
            return;
    }
    if (place == swarms->low * 2)
        swarms->low = place;
    ++swarms->buckets;
    struct swarm **from = table_bucket(swarms, place - swarms->low);
    struct swarm **to = table_bucket(swarms, place);
    while (*from != NULL) {
        struct swarm *swarm = *from;
        if (place_of(swarms, swarm->hash) == place) {
            *from = swarm->next;
            swarm->next = *to;
            *to = swarm;
        } else {
            from = &swarm->next;
        }
    }
}

struct swarm *table_insert(struct swarms *swarms, const uint8_t *info_hash)
{
    struct swarm *swarm = calloc(1, sizeof *swarm);
    if (swarm == NULL)
        return NULL;
    if (swarms->count >= swarms->buckets)
        table_grow(swarms);
    swarm->hash = hash_of(swarms, info_hash);
    memcpy(swarm->info_hash, info_hash, SWARMS_HASH_BYTES);
    struct swarm **bucket = table_bucket(swarms, place_of(swarms, swarm->hash));
    swarm->next = *bucket;
    *bucket = swarm;
    ++swarms->count;
    return swarm;
}

bool table_forget(struct swarms *swarms, struct swarm *swarm)
{
    for (int place = 0; place < 4; ++place)
        if (swarm->pools[place].count)
            return false;
    if (swarms->keep_downloads && swarm->downloaded)
        return false;
    struct swarm **link = table_bucket(swarms, place_of(swarms, swarm->hash));
    while (*link != swarm)
        link = &(*link)->next;
    *link = swarm->next;
    free(swarm);
    --swarms->count;
    return true;
}

void table_close(struct swarms *swarms)
{
    for (uint32_t place = 0; place < swarms->buckets; ++place) {
        struct swarm *swarm = *table_bucket(swarms, place);
        while (swarm != NULL) {
            struct swarm *next = swarm->next;
            for (int pool = 0; pool < 4; ++pool)
                pool_clear(&swarm->pools[pool]);
            free(swarm);
            swarm = next;
        }
    }
    for (uint32_t place = 0; place < swarms->buckets; place += SEGMENT)
        free(swarms->segments[place / SEGMENT]);
    free(swarms->segments);
}

/* -- announces --------------------------------------------------------------------------------- */

struct swarms_counts counts_of(const struct swarm *swarm)
{
    const struct pool *pools = swarm->pools;
    uint32_t incomplete = pools[2].count + pools[3].count;
    return (struct swarms_counts){pools[0].count + pools[1].count, incomplete, swarm->downloaded,
                                  incomplete - swarm->partial};
}

/* Write at most `limit` records of a pool, each with the same chance: from a random one on, one out
 * of each of as many equal stretches. `without` is the ordinal of one that isn't chosen, or -1.
 * Returns how many. */
static uint32_t choose(struct swarms *swarms, const struct pool *pool, bool six, uint32_t limit,
                       int64_t without, uint8_t *peers, uint8_t *ids)
{
    size_t key = pool_key(six), stride = pool_stride(six);
    uint32_t size = pool->count - (without >= 0), taken = size < limit ? size : limit;
    if (taken == 0)
        return 0;
    uint32_t ordinal = taken < size ? random_below(swarms, size) : 0;
    uint32_t step = size / taken, rest = size % taken, carried = 0;
    uint32_t chunk_place = 0, before = 0;
    struct pool_chunk chunk = pool_chunk_at(pool, 0);
    for (uint32_t index = 0; index < taken; ++index) {
        uint32_t width = step + (carried + rest >= taken);
        uint32_t chosen = ordinal + (width > 1 ? random_below(swarms, width) : 0);
        if (chosen >= size)
            chosen -= size;
        uint32_t wanted = chosen + (without >= 0 && chosen >= without);
        if (wanted < before) {
            chunk_place = before = 0;
            chunk = pool_chunk_at(pool, 0);
        }
        while (wanted - before >= chunk.count) {
            before += chunk.count;
            chunk = pool_chunk_at(pool, ++chunk_place);
        }
        const uint8_t *record = chunk.records + (wanted - before) * stride;
        memcpy(peers + index * key, record, key);
        if (ids != NULL)
            memcpy(ids + (size_t)index * SWARMS_HASH_BYTES, pool_id(record, six),
                   SWARMS_HASH_BYTES);
        ordinal += width;
        carried += rest;
        if (carried >= taken)
            carried -= taken;
        if (ordinal >= size)
            ordinal -= size;
    }
    return taken;
}

/* Fill the lists of an answer. A leecher gets seeds first; who has nothing to fetch gets leechers
 * only; peers of the asker's own family come first, since those it surely reaches. */
static void select_peers(struct swarms *swarms, const struct swarm *swarm,
                         const struct swarms_request *request, bool needs_nothing, uint32_t numwant,
                         int own_place, int64_t own_ordinal, struct swarms_answer *answer)
{
    bool own_six = request->address_bytes == 16;
    for (int role = needs_nothing; role < 2; ++role)
        for (int other = 0; other < 2 - request->one_family; ++other) {
            bool six = own_six != (bool)other;
            int place = 2 * role + six;
            uint32_t *count = six ? &answer->count6 : &answer->count4;
            uint8_t *peers = (six ? answer->peers6 : answer->peers4), *ids = NULL;
            if (numwant == 0 || swarm->pools[place].count == 0 || peers == NULL)
                continue;
            if (request->want_ids) {
                ids = six ? answer->ids6 : answer->ids4;
                ids += (size_t)*count * SWARMS_HASH_BYTES;
            }
            uint32_t taken =
                choose(swarms, &swarm->pools[place], six, numwant,
                       place == own_place ? own_ordinal : -1, peers + *count * pool_key(six), ids);
            *count += taken;
            numwant -= taken;
        }
}

/* Remove a peer in whichever role; returns whether it was there. */
static bool take(struct swarms *swarms, struct swarm *swarm, const uint8_t *key, bool six,
                 bool *was_seed, uint8_t *flags)
{
    for (int role = 0; role < 2; ++role) {
        int place = 2 * role + six;
        struct pool *pool = &swarm->pools[place];
        struct pool_place found;
        if (!pool_find(pool, key, six, &found))
            continue;
        *flags = pool_flags(pool_record(pool, found, six), six);
        *was_seed = role == 0;
        pool_remove(pool, found, six);
        swarm->partial -= *flags & POOL_PARTIAL;
        --swarms->peers[place];
        return true;
    }
    return false;
}

static uint64_t peers_of(const struct swarms *swarms)
{
    return swarms->peers[0] + swarms->peers[1] + swarms->peers[2] + swarms->peers[3];
}

/* Keep a new record, unless a limit is reached. */
static void insert(struct swarms *swarms, struct swarm *swarm, int place, const uint8_t *record)
{
    bool six = place % 2;
    struct pool *pool = &swarm->pools[place];
    uint32_t partial = 0;
    swarms->peers[place] -=
        pool_make_room(pool, record, swarms->limits.address_ports, six, &partial);
    swarm->partial -= partial;
    const struct pool *pools = swarm->pools;
    uint64_t size = (uint64_t)pools[0].count + pools[1].count + pools[2].count + pools[3].count;
    if (peers_of(swarms) < swarms->limits.peers && size < swarms->limits.swarm_peers &&
        pool_insert(pool, record, six)) {
        swarm->partial += pool_flags(record, six) & POOL_PARTIAL;
        ++swarms->peers[place];
    }
}

static void enter(struct swarms *swarms, const struct swarms_request *request, uint32_t numwant,
                  int64_t now, struct swarms_answer *answer)
{
    answer->count4 = answer->count6 = 0;
    answer->counts = (struct swarms_counts){0};
    if (numwant > answer->room)
        numwant = answer->room;
    bool six = request->address_bytes == 16, stops = request->event == SWARMS_STOPPED;
    bool completes = request->event == SWARMS_COMPLETED, seed = request->left == 0 || completes;
    struct swarm *swarm = table_find(swarms, request->info_hash);
    if (swarm == NULL) {
        /* Nothing is allocated for a peer that leaves, or beyond the limit. */
        if (stops || swarms->count >= swarms->limits.swarms)
            return;
        swarm = table_insert(swarms, request->info_hash);
        if (swarm == NULL)
            return;
    }
    uint8_t record[POOL_MAX_STRIDE];
    size_t key = pool_key(six);
    memcpy(record, request->address, key - 2);
    record[key - 2] = (uint8_t)(request->port >> 8);
    record[key - 1] = (uint8_t)request->port;
    int place = 2 * !seed + six;
    struct pool *pool = &swarm->pools[place];
    struct pool_place found;
    bool was_seed = false, stays = !stops && pool_find(pool, record, six, &found);
    uint8_t flags = 0;
    if (stays) {
        /* Nearly all announces: one finds the peer, and its record stays where it is. */
        was_seed = seed;
        flags = pool_flags(pool_record(pool, found, six), six);
        swarm->partial -= flags & POOL_PARTIAL;
    } else {
        take(swarms, swarm, record, six, &was_seed, &flags);
    }
    if (stops) {
        answer->counts = counts_of(swarm);
        table_forget(swarms, swarm);
        return;
    }
    flags &= (uint8_t)~POOL_PARTIAL;
    if (request->event == SWARMS_PAUSED && !seed)
        flags |= POOL_PARTIAL;
    if (completes && !was_seed && !(flags & POOL_COUNTED)) {
        flags |= POOL_COUNTED;
        ++swarm->downloaded;
        if (swarms->keep_downloads)
            /* Without memory the number waits for the next download. */
            (void)hashset_add(swarms->changed, swarm->info_hash);
    }
    select_peers(swarms, swarm, request, seed || flags & POOL_PARTIAL, numwant,
                 stays ? place : -1, stays ? (int64_t)pool_ordinal(pool, found) : -1, answer);
    uint32_t seen = (uint32_t)now;
    memcpy(record + key, &seen, sizeof seen);
    record[key + 4] = flags;
    memcpy(record + key + 5, request->peer_id, SWARMS_HASH_BYTES);
    if (stays) {
        memcpy(pool_record(pool, found, six) + key, record + key, POOL_TAIL);
        swarm->partial += flags & POOL_PARTIAL;
    } else {
        insert(swarms, swarm, place, record);
    }
    answer->counts = counts_of(swarm);
    if (!stays)
        table_forget(swarms, swarm);
}

void swarms_enter_locked(struct swarms *swarms, const struct swarms_request *request, int64_t now,
                         struct swarms_answer *answer)
{
    uint32_t numwant = request->numwant < 0                   ? 0
                       : request->numwant > SWARMS_MAX_WANTED ? SWARMS_MAX_WANTED
                                                              : (uint32_t)request->numwant;
    enter(swarms, request, numwant, now, answer);
}

enum swarms_status swarms_announce_locked(struct swarms *swarms,
                                          const struct swarms_request *request, int64_t now,
                                          struct swarms_answer *answer)
{
    if (swarms_refuses_locked(swarms, request->address, request->address_bytes))
        return SWARMS_REFUSED;
    if (hashset_has(swarms->blocked, request->info_hash))
        return SWARMS_BLOCKED;
    if (!swarms->open && !hashset_has(swarms->listed, request->info_hash))
        return SWARMS_UNLISTED;
    const struct swarms_policy *policy = &swarms->policy;
    int64_t numwant = request->numwant < 0 ? policy->numwant : request->numwant;
    if (numwant > policy->max_numwant)
        numwant = policy->max_numwant;
    if (numwant > SWARMS_MAX_WANTED)
        numwant = SWARMS_MAX_WANTED;
    enter(swarms, request, (uint32_t)numwant, now, answer);
    bool seed = request->left == 0 || request->event == SWARMS_COMPLETED;
    uint32_t base = seed ? policy->interval : policy->leecher_interval, tenth = base / 10;
    /* Up to a tenth earlier or later: a seed box adds all its torrents at once. */
    answer->interval = base - tenth + random_below(swarms, 2 * tenth + 1);
    answer->min_interval = base / 2;
    return SWARMS_OK;
}

enum swarms_status swarms_announce(struct swarms *swarms, const struct swarms_request *request,
                                   int64_t now, struct swarms_answer *answer)
{
    swarms_lock(swarms);
    enum swarms_status status = swarms_announce_locked(swarms, request, now, answer);
    swarms_unlock(swarms);
    return status;
}
