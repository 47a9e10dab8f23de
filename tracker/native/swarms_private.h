/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the files behind swarms.h share. All of `struct swarms` but the counters, the key and the two
 * modes is guarded by its mutex.
 */
#ifndef NARSWARM_SWARMS_PRIVATE_H
#define NARSWARM_SWARMS_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "hashset.h"
#include "pool.h"
#include "siphash.h"
#include "swarms.h"

#define SEGMENT 1024u
#define MAX_BUCKETS (1u << 30)

struct swarm {
    struct swarm *next; /* in its bucket */
    uint32_t hash, downloaded, partial;
    uint8_t info_hash[SWARMS_HASH_BYTES];
    struct pool pools[4]; /* seeds of IPv4, of IPv6, leechers of IPv4, of IPv6 */
};

/* Blocked networks of one family and length, sorted. */
struct networks {
    uint8_t *prefixes;
    uint32_t count;
    uint8_t address_bytes, prefix;
};

struct decisions {
    struct networks *kinds;
    size_t count;
};

struct swarms {
    pthread_mutex_t mutex;
    bool open, keep_downloads;
    struct siphash_key key;
    uint64_t random[4];
    struct swarms_policy policy;
    struct swarms_limits limits;
    struct hashset *listed, *blocked;
    struct hashset *changed; /* infohashes whose downloads weren't handed out yet */
    struct decisions networks;
    struct swarm ***segments; /* each has SEGMENT buckets */
    uint32_t buckets, low;    /* `low` is the largest power of two that isn't above `buckets` */
    uint64_t count;           /* swarms */
    uint64_t peers[4];
    uint32_t sweep; /* the bucket where swarms_expire goes on */
    _Atomic uint64_t requests[SWARMS_PROTOCOLS][SWARMS_FAMILIES][SWARMS_ACTIONS][SWARMS_OUTCOMES];
    _Atomic uint64_t latency[SWARMS_PROTOCOLS][SWARMS_ACTIONS][SWARMS_BUCKETS];
    _Atomic uint64_t nanoseconds[SWARMS_PROTOCOLS][SWARMS_ACTIONS];
};

uint64_t random_word(struct swarms *swarms);
uint32_t random_below(struct swarms *swarms, uint32_t limit);

bool table_open(struct swarms *swarms);
void table_close(struct swarms *swarms);
struct swarm **table_bucket(struct swarms *swarms, uint32_t place);
struct swarm *table_find(struct swarms *swarms, const uint8_t *info_hash);
struct swarm *table_insert(struct swarms *swarms, const uint8_t *info_hash);
/* Free a swarm that says nothing any more; returns whether it did. */
bool table_forget(struct swarms *swarms, struct swarm *swarm);

struct swarms_counts counts_of(const struct swarm *swarm);
bool is_blocked_address(const struct decisions *networks, const uint8_t *address,
                        size_t address_bytes);

#endif
